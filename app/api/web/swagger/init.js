// The only part of this folder that is Leuko's; the rest is swagger-ui-dist 5.35.0, unchanged.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // its default is a host on the Internet
});
