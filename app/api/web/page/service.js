// Requests to the service: again when it is busy, with the key that the user gives; and whether it is ready.

import { $, Failure, setStatus, showProblem } from "./dom.js";

const MAX_ATTEMPTS = 8; // of a request that is answered 429 or 503
const MAX_NETWORK_ATTEMPTS = 3; // of a request without an answer
// ?model=NAME or NAME@VERSION in the page's address chooses one of several models.
const MODEL = new URLSearchParams(location.search).get("model");

export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });

// Return the address of a route; query: its parameters.
function address(path, query) {
  const given = new URLSearchParams({ ...query, ...(MODEL && { model: MODEL }) });
  return given.size ? `${path}?${given}` : path;
}

// options: those of fetch, and query.
export async function request(path, { query, ...options } = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem("leuko-key");
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(address(path, query), { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      if (attempt < MAX_NETWORK_ATTEMPTS) {
        await pause(attempt, options.signal);
        continue;
      }
      throw new Failure(
        "The service does not answer.",
        "Check that it is running and that the network is up.",
      );
    }
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    if (response.status === 401 && (await askForKey(key ? "This key is not valid." : "")))
      continue;
    if ((response.status === 429 || response.status === 503) && attempt < MAX_ATTEMPTS) {
      setStatus(`${problem.title ?? "Busy"}: trying again …`);
      await pause(Number(response.headers.get("Retry-After")) || attempt, options.signal);
      continue;
    }
    throw new Failure(
      problem.title ?? `The service answered with status ${response.status}.`,
      problem.detail ?? "",
      problem,
    );
  }
}

let keyPrompt = null; // the open dialog's promise: requests that need a key share one dialog
let keyDeclined = false; // the user cancelled: only an action of the user opens the dialog again

// Resolve to true once the user has entered a key, to false if the user cancels.
function askForKey(reason) {
  keyPrompt ??= new Promise((resolve) => {
    const dialog = $("ask-key");
    $("ask-key-why").textContent = reason || "This service requires an API key.";
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        keyPrompt = null;
        const key = dialog.returnValue === "use" ? $("key").value.trim() : "";
        keyDeclined = !key;
        if (key) sessionStorage.setItem("leuko-key", key);
        $("key").value = "";
        resolve(Boolean(key));
      },
      { once: true },
    );
    dialog.showModal();
  });
  return keyPrompt;
}

// Return the response's JSON.
export async function requestJson(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Failure("The service did not finish its answer.", "The connection was lost; try again.");
  }
}

// Poll /readyz for as long as the page is open. onReady: called while the service is ready, unless the user
// declined to give a key.
export async function watchReadiness(onReady) {
  for (;;) {
    let text,
      status = "unreachable";
    try {
      const response = await fetch("readyz", { cache: "no-store" });
      [text, status] = response.ok ? ["ready", "ready"] : [(await response.json()).detail, "waiting"];
      if (response.ok && !keyPrompt && !keyDeclined) await onReady().catch(showProblem);
    } catch {
      text = "not reachable";
    }
    // Assign only a changed text: a screen reader announces every assignment.
    if ($("readiness").textContent !== text) $("readiness").textContent = text;
    $("readiness").dataset.state = status;
    await pause(status === "ready" ? 10 : 2);
  }
}
