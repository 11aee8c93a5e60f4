"""The HTTP application: its lifecycle, uploads, content negotiation, OpenAPI, routes and the page."""
