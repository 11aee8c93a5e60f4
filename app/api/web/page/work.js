// Work that takes a while: one after the other, cancelled by the user or when its specimen is cleared.

import { $, setStatus, showProblem } from "./dom.js";
import { specimen } from "./specimen.js";

let queue = Promise.resolve(); // files that arrive during an upload wait for its end
let controller = null; // of the work in progress

export const isWorking = () => controller !== null;

// Do work after what was given before, unless the specimen is cleared until then.
export function enqueue(work) {
  const { number } = specimen;
  queue = queue.then(() => (number === specimen.number ? work() : undefined)).catch(showProblem);
}

// Run work that the user may cancel, and show what stops it. ofSpecimen: clearing the specimen ends the work.
// It dispatches "worked" when it ends.
export async function supervise(work, ofSpecimen = true) {
  const { number } = specimen;
  controller = Object.assign(new AbortController(), { ofSpecimen });
  setStatus("");
  try {
    await work(controller.signal);
  } catch (error) {
    showProblem(error);
    if (number === specimen.number) setStatus(error.name === "AbortError" ? "Cancelled." : "");
  } finally {
    controller = null;
    $("progress").hidden = true;
    document.dispatchEvent(new Event("worked"));
  }
}

export const cancel = () => controller?.abort();
specimen.addEventListener("cleared", () => {
  if (controller?.ofSpecimen) cancel();
});
