// Leuko's configuration of Swagger UI. All other files here are swagger-ui-dist 5.35.0, unchanged.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // the default sends the document to a host on the Internet
});
