// Pictures are sent to /predict, a few at a time; each gets its cells, a problem, or why it has none.

import { updateDifferential } from "./differential.js";
import { $, listen, MIB, plural, setStatus, showProblem, showProgress } from "./dom.js";
import { describeModel, model } from "./model.js";
import { requestJson } from "./service.js";
import { specimen } from "./specimen.js";
import { enqueue, noteSent, supervise } from "./work.js";

const BATCH_SIZE = 8; // pictures in a request
const CONCURRENT_REQUESTS = 2;
const MAX_FILENAME = 255; // characters in a form
// Errors of one request that say nothing about the others.
const IMAGE_CODES = ["too_large", "engine_error", "deadline_passed"];
// Statuses of pictures that may be classified if they are sent again.
const RETRIABLE = [408, 429, 500, 502, 503, 504];
export const UNANSWERED = {
  title: "Not classified",
  detail: "The upload stopped before this image.",
  code: "not_answered",
};

// items: as `specimen.add` takes them. mode: "all" cells of each picture, or each is "one" cell.
export async function classify(items, mode, signal) {
  await send(specimen.add(items, mode), signal);
}

// Classify pictures, some of them perhaps not for the first time.
export async function send(pictures, signal) {
  for (const picture of pictures) picture.problem = null;
  try {
    await describeModel();
    await sendBatches(pictures.filter(isSendable), pictures.length, signal);
    await explainEmpty(
      pictures.filter(({ empty }) => empty !== null),
      signal,
    );
  } finally {
    for (const picture of pictures)
      if (!picture.cells.length && !picture.problem && !picture.empty) fail(picture, UNANSWERED);
    noteSent();
    await updateDifferential().catch(showProblem);
  }
  // Last, so that all results are on the page when a screen reader announces this.
  const failed = pictures.filter(({ problem }) => problem).length,
    cells = pictures.reduce((sum, picture) => sum + picture.cells.length, 0),
    images = pictures.length - failed,
    areSingle = pictures.every((picture) => picture.problem || picture.cells.length === 1);
  setStatus(
    `${plural(images, "image")} classified${areSingle ? "" : `: ${plural(cells, "cell")}`}` +
      `${failed ? `, ${failed} failed` : ""}.`,
  );
}

// Mark a picture as failed if its file cannot be sent at all.
function isSendable(picture) {
  const maxMib = model().limits.max_image_mib;
  if (picture.flaw) fail(picture, { title: "Cannot be unpacked", detail: picture.flaw });
  else if (picture.file.size > maxMib * MIB)
    fail(picture, { title: "Too large", detail: `The file is larger than ${maxMib} MiB.` });
  return !picture.problem;
}

// total: all pictures of the work, to show the progress.
async function sendBatches(pending, total, signal) {
  const batchSize = Math.min(BATCH_SIZE, model().limits.max_files);
  let done = total - pending.length;
  const worker = async () => {
    while (pending.length) {
      const { mode } = pending[0],
        other = pending.findIndex((picture) => picture.mode !== mode);
      const batch = pending.splice(0, other < 0 ? batchSize : Math.min(batchSize, other));
      try {
        await classifyBatch(batch, mode, signal);
      } catch (error) {
        pending.length = 0;
        throw error;
      } finally {
        done += batch.length;
        showProgress(`Classified ${done} of ${plural(total, "image")}`, done, total);
      }
    }
  };
  showProgress(`Classifying ${plural(total, "image")}`, 0, total);
  const workers = await Promise.allSettled(Array.from({ length: CONCURRENT_REQUESTS }, worker));
  const rejected = workers.find((result) => result.status === "rejected");
  if (rejected) throw rejected.reason;
}

// Return the response of /predict for pictures.
export function predict(pictures, query, signal) {
  const body = new FormData();
  for (const { file } of pictures) body.append("files", file, file.name.slice(-MAX_FILENAME));
  return requestJson("predict", { method: "POST", body, signal, query });
}

const queryOf = (mode) => (mode === "all" ? { cells: "all" } : {});

async function classifyBatch(pictures, mode, signal) {
  let response;
  try {
    response = await predict(pictures, queryOf(mode), signal);
  } catch (error) {
    // Errors of these images do not stop the others; any other error of the request does.
    const imageErrors = error.errors?.filter((item) => Number.isInteger(item.index)) ?? [];
    const aboutImages = imageErrors.length || IMAGE_CODES.includes(error.code);
    if (!aboutImages) throw error;
    pictures.forEach((picture, index) =>
      fail(picture, imageErrors.find((item) => item.index === index) ?? error),
    );
    return;
  }
  const failed = new Map(response.errors.map((problem) => [problem.index, problem]));
  pictures.forEach((picture, index) => {
    if (failed.has(index)) return fail(picture, failed.get(index));
    // Our own name: the one in the response has no folders, and its quotes are escaped, as forms require.
    const cells = response.predictions
      .filter((prediction) => prediction.index === index)
      .map((prediction) => ({ ...prediction, filename: picture.name }));
    return specimen.settle(picture, cells.length ? { cells, model: response.model } : { empty: ["no_cell"] });
  });
}

// Ask why pictures have no cell: taken as one cell each, they have reasons for review.
async function explainEmpty(pictures, signal) {
  const batchSize = Math.min(BATCH_SIZE, model().limits.max_files);
  for (let start = 0; start < pictures.length; start += batchSize) {
    const batch = pictures.slice(start, start + batchSize);
    const { predictions } = await predict(batch, {}, signal).catch((error) => {
      if (signal?.aborted) throw error;
      return { predictions: [] }; // what is known already, that there is no cell, is shown all the same
    });
    for (const { index, review_reasons: reasons } of predictions)
      specimen.settle(batch[index], { empty: [...new Set(["no_cell", ...reasons.filter(isOfPicture)])] });
  }
}

export const OF_PICTURE = ["no_cell", "blurred", "exposure"]; // reasons for review that all its cells share
const isOfPicture = (reason) => OF_PICTURE.includes(reason);

function fail(picture, problem) {
  const { type, status, title, detail, code } = problem;
  specimen.settle(picture, {
    problem: { title, detail, ...(code && { code }), ...(type && { type }), ...(status && { status }) },
  });
}

// Return the class-activation map of a cell.
export async function fetchActivationMap({ picture, prediction }) {
  const response = await predict([picture], { ...queryOf(picture.mode), explain: "cam" });
  return response.predictions.find(({ cell }) => cell === prediction.cell).cam;
}

// --- sending again --------------------------------------------------------------------------------------

export const isUnanswered = ({ problem }) =>
  problem && (problem.code === UNANSWERED.code || RETRIABLE.includes(problem.status));

// Offer to send again what was not answered. uncounted: the cells could not be counted.
export function offerRetry(uncounted) {
  const count = specimen.pictures.filter(isUnanswered).length;
  $("retry").hidden = !count && !uncounted;
  $("retry").textContent = count ? `Send ${plural(count, "image")} again` : "Count the cells again";
}

export function listenToRetry() {
  listen("retry", "click", () => {
    $("problems").replaceChildren();
    $("retry").hidden = true;
    enqueue(() =>
      supervise((signal) => {
        const pictures = specimen.pictures.filter(isUnanswered);
        return pictures.length ? send(pictures, signal) : updateDifferential();
      }),
    );
  });
}

// Take pictures in which no cell was found as pictures of one cell each.
export function takeAsSingleCells(pictures) {
  for (const picture of pictures) Object.assign(picture, { mode: "one", empty: null });
  enqueue(() => supervise((signal) => send(pictures, signal)));
}
