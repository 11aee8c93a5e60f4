// The commands that do with curl what the page does.

import { Failure, setStatus } from "./dom.js";

export const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
export const formOption = (field, name) => `-F ${quote(`${field}=@"${name.replaceAll(/["\\]/g, "\\$&")}"`)}`;

export function curlCommand(path, options) {
  const key = sessionStorage.getItem("leuko-key") ? ['-H "Authorization: Bearer $LEUKO_KEY"'] : [];
  return ["curl --fail-with-body", ...key, ...options, quote(new URL(path, document.baseURI).href)].join(
    " \\\n  ",
  );
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    setStatus("Copied.");
  } catch {
    throw new Failure("The browser does not allow copying. Copy this text yourself:", text);
  }
}
