// Work that takes a while: one after the other, cancelled by the user or when its specimen is cleared.

import { $, setStatus, showProblem } from "./dom.js";
import { specimen } from "./specimen.js";

let queue = Promise.resolve(); // files that arrive during an upload wait for its end
let controller = null; // of the work in progress
let waiting = 0; // works in the queue that have not begun

export const isWorking = () => controller !== null;

// Return whether pictures of the specimen are still on their way, or wait for it.
export const isSending = () => waiting > 0 || Boolean(controller?.isSending);

// Note that every picture of the work in progress has its outcome; only the count is missing.
export function noteSent() {
  if (controller) controller.isSending = false;
}

// Do work after what was given before, unless the specimen is cleared until then.
export function enqueue(work) {
  const { number } = specimen;
  waiting++;
  queue = queue
    .then(() => {
      waiting--;
      return number === specimen.number ? work() : undefined;
    })
    .catch(showProblem);
}

// Run work that the user may cancel, and show what stops it. ofSpecimen: clearing the specimen ends the work.
// It dispatches "worked" when it ends.
export async function supervise(work, ofSpecimen = true) {
  const { number } = specimen;
  controller = Object.assign(new AbortController(), { ofSpecimen, isSending: ofSpecimen });
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
