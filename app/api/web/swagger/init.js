// Leuko's configuration of Swagger UI. All other files here are swagger-ui-dist 5.35.0, unchanged.
// The document's paths begin where it lies, also below a path prefix of a proxy.
const server = { url: new URL(".", location.href).pathname.replace(/\/$/, "") };
const placed = { statePlugins: { spec: { wrapActions: {
  updateJsonSpec: (update) => (document) => update(server.url ? { ...document, servers: [server] } : document),
} } } };
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  plugins: [placed],
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // the default sends the document to a host on the Internet
});
