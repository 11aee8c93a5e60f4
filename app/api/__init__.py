"""HTTP: the application and its lifecycle, uploads, content negotiation, OpenAPI, routes and the page."""
