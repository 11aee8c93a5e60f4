// The model that answers: what the service says of it.

import { $ } from "./dom.js";
import { requestJson } from "./service.js";

let described = null;

// Return the service's description of its model, from `GET /model`; ask for it only once.
export async function describeModel() {
  if (described) return described;
  described = await requestJson("model");
  $("model-name").textContent = described.name;
  $("model-version").textContent = described.version;
  $("model-sha256").textContent = described.sha256.slice(0, 12);
  $("model-sha256").title = described.sha256;
  const { site } = described;
  $("model-site").textContent = site
    ? `verified for ${site.name} on ${site.verified_at.slice(0, 10)}`
    : "not verified for this laboratory";
  $("model-site").dataset.verified = Boolean(site);
  document.dispatchEvent(new Event("model"));
  return described;
}

export const model = () => described;

// Return the labels that a person may give, in the order of their keys.
export const labels = () => described?.labels ?? [];
