// The page at /: send images, show the results. It calls the same HTTP API as any other client.

import {
  classOf,
  droppedItems,
  isArchive,
  leftOutLines,
  listArchive,
  selectImages,
  unpack,
} from "./files.js";
import { markOf } from "./marks.js";
import { extract, readDirectory, Unreadable } from "./zip.js";

const BATCH_SIZE = 8; // images in a request
const CONCURRENT_REQUESTS = 2;
const MAX_ATTEMPTS = 8; // of a request that is answered 429 or 503
const MAX_NETWORK_ATTEMPTS = 3; // of a request without an answer
const MAX_CELLS = 10_000; // in a differential
const MAX_FILENAME = 255; // characters in a form
const MISTAKES_PER_PAGE = 24;
const MOST_BARS = 6; // probabilities on a card
// Errors of one request that say nothing about the others.
const IMAGE_CODES = ["too_large", "engine_error", "deadline_passed"];
const MIB = 2 ** 20;

const $ = (id) => document.getElementById(id);
const state = {
  model: null, cells: [], report: null, archive: null, controller: null, shown: 0,
  specimen: 1, // number of the specimen: work for an earlier one is dropped
  counting: 0, // number of the last request for a differential: an earlier response is out of date
  uncounted: false, // the last request for a differential failed
};

// Results, and which of them are in a file: it holds those of the moment in which it was asked for.
class Results {
  version = 0;
  saved = 0;
  change() {
    this.version++;
  }
  keep(version) {
    this.saved = Math.max(this.saved, version);
  }
  get unsaved() {
    return this.saved < this.version;
  }
}
const results = { specimen: new Results(), evaluation: new Results() };
const isSpecimenUnsaved = () =>
  results.specimen.unsaved && state.cells.some((cell) => cell.prediction);

// --- the service ------------------------------------------------------------------------------------

class Failure extends Error {
  constructor(title, detail, problem = {}) {
    super(detail);
    Object.assign(this, { title, detail, code: problem.code, errors: problem.errors ?? [] });
  }
}

const pause = (seconds, signal) =>
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

async function request(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem("leuko-key");
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
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
async function requestJson(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Failure("The service did not finish its answer.", "The connection was lost; try again.");
  }
}

async function describeModel() {
  state.model = await requestJson("model");
  $("model-name").textContent = state.model.name;
  $("model-version").textContent = state.model.version;
  $("model-sha256").textContent = state.model.sha256.slice(0, 12);
  $("model-sha256").title = state.model.sha256;
  const { site } = state.model;
  $("model-site").textContent = site
    ? `verified for ${site.name} on ${site.verified_at.slice(0, 10)}`
    : "not verified for this laboratory";
  $("model-site").dataset.verified = Boolean(site);
}

// Poll /readyz for as long as the page is open.
async function watchReadiness() {
  for (;;) {
    let text,
      status = "unreachable";
    try {
      const response = await fetch("readyz", { cache: "no-store" });
      [text, status] = response.ok ? ["ready", "ready"] : [(await response.json()).detail, "waiting"];
      if (response.ok && !state.model && !keyPrompt && !keyDeclined)
        await describeModel().catch(showProblem);
    } catch {
      text = "not reachable";
    }
    // Assign only a changed text: a screen reader announces every assignment.
    if ($("readiness").textContent !== text) $("readiness").textContent = text;
    $("readiness").dataset.state = status;
    await pause(status === "ready" ? 10 : 2);
  }
}

// --- messages to the user ---------------------------------------------------------------------------

const setStatus = (text) => {
  $("status").textContent = text;
};

function showProblem(error) {
  if (error.name === "AbortError") return;
  showMessage("problem", error.title ?? "Something went wrong.", error.detail ?? error.message);
}

// kind: problem or note.
function showMessage(kind, title, detail = "") {
  const shown = [...$("problems").children].map((row) => row.querySelector("p").textContent);
  if (shown.includes(`${title} ${detail}`)) return;
  const row = element("div", { className: kind });
  const text = element("p", {}, element("strong", { textContent: title }), ` ${detail}`);
  const close = element("button", { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", () => row.remove());
  row.append(text, close);
  $("problems").append(row);
}

function element(tag, properties = {}, ...children) {
  const { dataset, style, attributes, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(style ?? {})) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function showProgress(text, done, total) {
  $("progress").hidden = false;
  $("progress-label").textContent = text;
  $("bar").max = Math.max(total, 1);
  $("bar").value = done;
}

// --- files ------------------------------------------------------------------------------------------

let queue = Promise.resolve(); // files that arrive during an upload wait for its end

// Do work after what was given before, unless the specimen is cleared until then.
function enqueue(work) {
  const { specimen } = state;
  queue = queue.then(() => (specimen === state.specimen ? work() : undefined)).catch(showProblem);
}

// Run work that the user may cancel; show what stops it, and offer to send again what was not answered.
// ofSpecimen: clearing the specimen ends the work.
async function supervise(work, ofSpecimen = true) {
  const { specimen } = state;
  state.controller = Object.assign(new AbortController(), { ofSpecimen });
  setStatus("");
  try {
    await work(state.controller.signal);
  } catch (error) {
    showProblem(error);
    if (specimen === state.specimen) setStatus(error.name === "AbortError" ? "Cancelled." : "");
  } finally {
    state.controller = null;
    $("progress").hidden = true;
    offerRetry();
  }
}

const isUnanswered = ({ problem }) =>
  problem && (problem.code === UNANSWERED.code || RETRIABLE.includes(problem.status));

function offerRetry() {
  const count = state.cells.filter(isUnanswered).length;
  $("retry").hidden = !count && !state.uncounted;
  $("retry").textContent = count ? `Send ${plural(count, "image")} again` : "Count the cells again";
}

function retry() {
  $("problems").replaceChildren();
  $("retry").hidden = true;
  enqueue(() =>
    supervise(async (signal) => {
      const cells = state.cells.filter(isUnanswered);
      await (cells.length ? send(cells, signal) : updateDifferential());
    }),
  );
}

// items: [{ name, file, inFolder }]; failed: what could not be read, [{ name, why }].
async function process({ items, failed }) {
  if (!items.length && !failed.length) return;
  $("problems").replaceChildren();
  const evaluations = [];
  await supervise(async (signal) => {
    const given = items.filter(({ inFolder }) => !inFolder);
    const folders = await selectImages(items.filter(({ inFolder }) => inFolder));
    const cells = [...given.filter((item) => !isArchive(item)), ...folders.images];
    showLeftOut([...folders.leftOut, ...failed]);
    if (folders.images.some(({ name }) => classOf(name, state.model?.labels ?? [])))
      showMessage(
        "note",
        "Folders named after classes are counted as one specimen.",
        "To evaluate the model, drop them in a ZIP.",
      );
    for (const archive of given.filter(isArchive)) {
      try {
        const use = await chooseUse(archive);
        if (use.purpose === "evaluation") evaluations.push(archive);
        else if (use.purpose === "cells") cells.push(...(await unpackCells(archive, use, signal)));
        else setStatus(`${archive.name} was not used.`);
      } catch (error) {
        if (signal.aborted) throw error;
        showProblem(error); // what was given with it is used all the same
      }
    }
    if (cells.length) await classify(cells, signal);
  });
  if (evaluations.length > 1)
    showProblem(
      new Failure(
        "Only one archive at a time is evaluated.",
        `${evaluations[0].name} is; drop the others one after the other.`,
      ),
    );
  if (evaluations.length) await supervise((signal) => evaluate(evaluations[0].file, signal), false);
}

function showLeftOut(leftOut) {
  for (const line of leftOutLines(leftOut)) showMessage("note", line);
}

// Look into a ZIP and return its purpose, "cells" or "evaluation", or "" if the user gives none; for cells also
// the entries to unpack and what is left out.
async function chooseUse(archive) {
  let listing;
  try {
    listing = await listArchive(archive.file);
  } catch (error) {
    if (error instanceof Unreadable) return { purpose: "evaluation" }; // the service says what is wrong
    throw error;
  }
  if (!state.model) await describeModel();
  const { labels } = state.model,
    images = listing.candidates.filter(({ name, certain }) => certain || classOf(name, labels)),
    classes = images.map(({ name }) => classOf(name, labels)),
    folders = new Set(images.map(({ name }) => name.slice(0, name.lastIndexOf("/") + 1)));
  if (classes.some(Boolean)) return { purpose: await askForPurpose(archive, classes), ...listing };
  if (folders.size > 1)
    showMessage(
      "note",
      `The images of ${archive.name} are counted as one specimen.`,
      `None of its folders is named after a class (${labels.join(", ")}).`,
    );
  return { purpose: "cells", ...listing };
}

// Ask what to do with a ZIP that has class folders. classes: of its files, null for those outside.
function askForPurpose({ name }, classes) {
  const counts = state.model.labels
    .map((label) => [label, classes.filter((one) => one === label).length])
    .filter(([, count]) => count);
  const outside = classes.filter((label) => label === null).length;
  $("ask-purpose-name").textContent = name;
  $("ask-purpose-why").textContent =
    `It has folders named after classes: ${counts.map(([label, count]) => `${label} (${count})`).join(", ")}.` +
    (outside ? ` Outside of them: ${outside}. An evaluation needs every image in a class folder.` : "");
  const dialog = $("ask-purpose");
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}

// Return the images of a ZIP; those that cannot be unpacked have a flaw.
async function unpackCells(archive, { candidates, leftOut }, signal) {
  if (candidates.length > MAX_CELLS)
    throw new Failure(
      "Too many cells for one differential.",
      `${archive.name} has over ${MAX_CELLS} files.`,
    );
  const cells = [];
  let done = 0;
  try {
    for await (const item of unpack(archive, candidates, state.model.limits.max_image_mib * MIB)) {
      signal.throwIfAborted();
      if (item.why) leftOut.push(item);
      else cells.push(item);
      showProgress(`Unpacking ${archive.name}`, ++done, candidates.length);
    }
  } catch (error) {
    if (error instanceof Unreadable) throw new Failure(`${archive.name} cannot be unpacked.`, error.message);
    throw error;
  }
  showLeftOut(leftOut);
  if (!cells.length) showProblem(new Failure(`${archive.name} holds no images.`, ""));
  return cells;
}

// --- classification ---------------------------------------------------------------------------------

const UNANSWERED = {
  title: "Not classified",
  detail: "The upload stopped before this image.",
  code: "not_answered",
};
// Statuses of images that may be classified if they are sent again.
const RETRIABLE = [408, 429, 500, 502, 503, 504];

// items: [{ name, file }]; from a ZIP also its name as archive, and a flaw instead of a file that is unreadable.
async function classify(items, signal) {
  const added = items.map((item) => ({
    ...item,
    url: item.file && URL.createObjectURL(item.file),
    prediction: null,
    problem: null,
    card: null,
  }));
  state.cells.push(...added);
  results.specimen.change();
  await send(added, signal);
}

// Classify cells, some of them perhaps not for the first time.
async function send(cells, signal) {
  for (const cell of cells) {
    cell.card?.remove();
    Object.assign(cell, { card: null, problem: null });
  }
  try {
    if (!state.model) await describeModel();
    await sendBatches(cells.filter(isSendable), cells.length, signal);
  } finally {
    for (const cell of cells) if (!cell.prediction && !cell.problem) markFailed(cell, UNANSWERED);
    await updateDifferential().catch(showProblem);
  }
  // Last, so that all results are on the page when a screen reader announces this.
  const failed = cells.filter((cell) => cell.problem).length;
  setStatus(`${plural(cells.length - failed, "image")} classified${failed ? `, ${failed} failed` : ""}.`);
}

// Mark a cell as failed if its file cannot be sent at all.
function isSendable(cell) {
  const maxMib = state.model.limits.max_image_mib;
  if (cell.flaw) markFailed(cell, { title: "Cannot be unpacked", detail: cell.flaw });
  else if (cell.file.size > maxMib * MIB)
    markFailed(cell, { title: "Too large", detail: `The file is larger than ${maxMib} MiB.` });
  return !cell.problem;
}

// total: all images of the work, to show the progress.
async function sendBatches(pending, total, signal) {
  const batchSize = Math.min(BATCH_SIZE, state.model.limits.max_files);
  let done = total - pending.length;
  const worker = async () => {
    while (pending.length) {
      const batch = pending.splice(0, batchSize);
      try {
        await classifyBatch(batch, signal);
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

async function classifyBatch(cells, signal) {
  const form = new FormData();
  for (const cell of cells) form.append("files", cell.file, cell.file.name.slice(-MAX_FILENAME));
  let response;
  try {
    response = await requestJson("predict", { method: "POST", body: form, signal });
  } catch (error) {
    // Errors of these images do not stop the others; any other error of the request does.
    const imageErrors = error.errors?.filter((item) => Number.isInteger(item.index)) ?? [];
    const aboutImages = imageErrors.length || IMAGE_CODES.includes(error.code);
    if (!aboutImages) throw error;
    cells.forEach((cell, index) =>
      markFailed(cell, imageErrors.find((item) => item.index === index) ?? error),
    );
    return;
  }
  for (const problem of response.errors) markFailed(cells[problem.index], problem);
  for (const prediction of response.predictions) {
    const cell = cells[prediction.index];
    // Our own name: the one in the response has no folders, and its quotes are escaped, as forms require.
    cell.prediction = { ...prediction, filename: cell.name };
    cell.model = response.model;
    results.specimen.change();
    showCard(cell);
  }
}

function markFailed(cell, problem) {
  const { type, status } = problem;
  cell.problem = {
    title: problem.title,
    detail: problem.detail,
    ...(problem.code && { code: problem.code }),
    ...(type && { type }),
    ...(status && { status }),
  };
  results.specimen.change();
  showCard(cell);
}

// --- cards ------------------------------------------------------------------------------------------

function showCard(cell) {
  if (!state.cells.includes(cell)) return; // its specimen was cleared
  const card = (cell.card = $("card").content.firstElementChild.cloneNode(true));
  const [preview, image] = [card.querySelector(".preview"), card.querySelector("img")];
  image.addEventListener("load", () => setAspectRatio(card.querySelector(".fit"), image));
  image.addEventListener("error", () => {
    preview.classList.add("unavailable");
    preview.dataset.reason = cell.url ? "No preview: this browser cannot show this format." : "No preview.";
  });
  if (cell.url) image.src = cell.url;
  else image.dispatchEvent(new Event("error"));
  card.querySelector(".name").textContent = cell.name;
  if (cell.prediction) fillCard(cell, card);
  else {
    card.classList.add("failed-card");
    card.querySelector("h3").textContent = cell.problem.title;
    card.querySelector(".review").className = "failed";
    Object.assign(card.querySelector(".failed"), { hidden: false, textContent: cell.problem.detail });
    card.querySelector(".bars").remove();
    card.querySelector(".map").remove();
  }
  insertCard(cell);
}

function setAspectRatio(fit, image) {
  const ratio = image.naturalWidth / image.naturalHeight;
  fit.style.setProperty("--ratio", ratio);
  fit.classList.toggle("tall", ratio < 4 / 3);
}

function insertCard(cell) {
  // Cards are in the order of the files, whatever the order of the responses.
  const next = state.cells.slice(state.cells.indexOf(cell) + 1).find((other) => other.card?.isConnected);
  $("cards").insertBefore(cell.card, next?.card ?? null);
  $("cells").hidden = false;
  applyFilter();
}

const REASONS = {
  no_cell: "no cell was found in the picture",
  several_cells: "there are several leukocytes in the picture",
  cut_off: "the cell is cut off by the edge of the picture",
  blurred: "the picture is blurred",
  exposure: "the picture is too dark, too bright or without contrast",
  low_confidence: "the model is not sure",
  out_of_distribution: "the image is unlike those that the model was trained on",
};

function fillCard(cell, card) {
  const { label, confidence, probabilities, review, review_reasons: reasons } = cell.prediction;
  card.classList.toggle("to-review", review);
  card.querySelector("h3").append(label, element("span", { textContent: percent(confidence) }));
  card.querySelector("img").alt = `${cell.name}: ${label}`;
  Object.assign(card.querySelector(".review"), {
    hidden: !review,
    textContent: `⚑ Review: ${reasons.map((reason) => REASONS[reason] ?? reason).join("; ")}.`,
  });
  const labels = Object.keys(probabilities);
  const bar = (name, share, mark) =>
    element(
      "li",
      { dataset: mark },
      element("span", { textContent: name }),
      element(
        "span",
        { className: "track", attributes: { "aria-hidden": "true" } },
        element("i", { style: { width: percent(share).replace(" ", "") } }),
      ),
      element("span", { textContent: percent(share) }),
    );
  // Of many classes, a card has the most probable ones and the sum of the others.
  const shown =
    labels.length <= MOST_BARS
      ? labels
      : [...labels].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST_BARS - 1);
  const rest = labels.filter((name) => !shown.includes(name));
  card
    .querySelector(".bars")
    .append(...shown.map((name) => bar(name, probabilities[name], markOf(name, labels))));
  if (rest.length)
    card.querySelector(".bars").append(
      bar(
        `${rest.length} others`,
        rest.reduce((sum, name) => sum + probabilities[name], 0),
        { others: "" },
      ),
    );
  card.querySelector(".bars").setAttribute("aria-label", "Probabilities");
  const button = card.querySelector(".map button");
  button.setAttribute("aria-label", `Activation map of ${cell.name}`);
  button.addEventListener("click", () => toggleMap(cell, card, button).catch(showProblem));
}

async function toggleMap(cell, card, button) {
  const label = card.querySelector(".map label"),
    fit = card.querySelector(".fit");
  if (fit.querySelector("canvas")) {
    fit.querySelector("canvas").remove();
    label.hidden = true;
    button.setAttribute("aria-pressed", "false");
    return;
  }
  button.disabled = true;
  try {
    cell.cam ??= await fetchActivationMap(cell);
  } finally {
    button.disabled = false;
  }
  const canvas = drawMap(cell.cam, cell.prediction.frame, card.querySelector("img"));
  const slider = label.querySelector("input");
  const setOpacity = () => {
    canvas.style.opacity = slider.value / 100;
  };
  slider.oninput = setOpacity;
  setOpacity();
  fit.append(canvas);
  label.hidden = false;
  button.setAttribute("aria-pressed", "true");
}

async function fetchActivationMap(cell) {
  const form = new FormData();
  form.append("files", cell.file, cell.file.name.slice(-MAX_FILENAME));
  const response = await requestJson("predict?explain=cam", { method: "POST", body: form });
  return response.predictions[0].cam;
}

const COLOUR_MAP = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
]; // five points of matplotlib's inferno, RGB

// Return the RGB colour of a value from 0 to 1, interpolated linearly.
function colour(value) {
  const position = Math.min(Math.max(value, 0), 1) * (COLOUR_MAP.length - 1),
    low = Math.min(Math.floor(position), COLOUR_MAP.length - 2);
  return COLOUR_MAP[low].map(
    (level, channel) => level + (position - low) * (COLOUR_MAP[low + 1][channel] - level),
  );
}

// Return a canvas with the map, placed over the classified frame of the displayed image.
function drawMap({ shape: [rows, columns], values }, frame, image) {
  const small = new OffscreenCanvas(columns, rows),
    pixels = new ImageData(columns, rows);
  values.flat().forEach((value, index) => pixels.data.set([...colour(value), 255], 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = element("canvas", {
    width: 224,
    height: 224,
    attributes: { role: "img", "aria-label": "Activation map" },
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, 224, 224);
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const placement = {
    left: frame.left / width,
    top: frame.top / height,
    width: frame.width / width,
    height: frame.height / height,
  };
  for (const [property, share] of Object.entries(placement)) canvas.style[property] = `${100 * share}%`;
  return canvas;
}

function applyFilter() {
  const selected = document.querySelector("#filter input:checked").value;
  const filters = {
    all: () => true,
    review: (cell) => Boolean(cell.prediction?.review),
    failed: (cell) => Boolean(cell.problem),
  };
  for (const input of document.querySelectorAll("#filter input")) {
    input.parentElement.querySelector("output").textContent = state.cells.filter(filters[input.value]).length;
  }
  for (const cell of state.cells) if (cell.card) cell.card.hidden = !filters[selected](cell);
}

// --- the differential -------------------------------------------------------------------------------

// Return the body of POST /differential for all cells; a report says how many images could not be classified.
function differentialRequest(running = false) {
  const predictions = state.cells.filter((cell) => cell.prediction).map((cell) => cell.prediction);
  const errors = state.cells.flatMap(({ prediction, problem, name }, index) => {
    if (prediction || (running && !problem)) return [];
    const about = { type: "about:blank", status: 0, ...UNANSWERED, ...problem };
    return [{ ...about, index, filename: name }];
  });
  const [specimen, accession] = ["specimen-id", "accession-id"].map((id) => $(id).value.trim());
  const models = new Map(state.cells.flatMap(({ model }) => (model ? [[model.sha256, model]] : [])));
  if (models.size > 1)
    throw new Failure(
      "The cells were classified by different models.",
      "The service was updated meanwhile. Clear the page and send the images again.",
    );
  return { predictions, errors, specimen, accession, model: [...models.values()][0] };
}

// Return the options of a request for a differential of what the page shows now.
const differentialOptions = (body, accept = "application/json") => ({
  method: "POST",
  headers: { "Content-Type": "application/json", Accept: accept },
  body: JSON.stringify(body),
});

async function updateDifferential() {
  const turn = ++state.counting,
    some = state.cells.some((cell) => cell.prediction);
  $("specimen").hidden = !some;
  if (!some) return;
  try {
    const body = differentialRequest(state.controller !== null);
    if (body.predictions.length > MAX_CELLS)
      throw new Failure(
        "Too many cells for one differential.",
        `The limit is ${MAX_CELLS}. Clear the page to start a new one.`,
      );
    const differential = await requestJson("differential", differentialOptions(body));
    if (turn === state.counting) showDifferential(differential);
  } catch (error) {
    if (turn !== state.counting) return;
    showCounted(false);
    throw error;
  }
}

// A count that is out of date is not shown.
function showCounted(isCounted) {
  state.uncounted = !isCounted;
  $("counted").hidden = !isCounted;
  $("uncounted").hidden = isCounted;
}

function showDifferential(differential) {
  const { n, leukocytes, counts, review } = differential,
    labels = Object.keys(counts);
  const among = leukocytes === n ? "" : ` (${plural(leukocytes, "leukocyte")})`;
  $("differential").caption.textContent =
    `${plural(n, "classified cell")}${among}, ${review.length} to review`;
  $("differential").tBodies[0].replaceChildren(
    ...labels.map((label) => {
      const { share, wilson, exact, range } = amountOf(differential, label);
      return element(
        "tr",
        { dataset: markOf(label, labels) },
        element("th", { scope: "row", textContent: label }),
        element("td", { textContent: counts[label] }),
        element("td", { textContent: share }),
        element("td", { textContent: wilson }),
        element("td", { textContent: exact }),
        element("td", { className: "wide", attributes: { "aria-hidden": "true" } }, range),
      );
    }),
  );
  $("warnings").replaceChildren(
    ...differential.warnings.map((warning) => element("li", { textContent: warning.detail })),
  );
  showCounted(true);
}

// Return what a row of the differential says of a class: percent of the leukocytes, or cells per 100 of them.
function amountOf(differential, label) {
  const { percent: shares, per_100_leukocytes: ratios } = differential;
  const isShare = label in shares,
    value = isShare ? shares[label] : ratios[label];
  if (value === undefined || value === null) return { share: "–", wilson: "–", exact: "–", range: "" };
  const intervals = isShare ? differential.intervals : differential.intervals_per_100_leukocytes;
  const [low, high] = intervals.wilson[label];
  const text = (bounds) => bounds.map((bound) => bound.toFixed(1)).join(" – ");
  const texts = { wilson: text(intervals.wilson[label]), exact: text(intervals.exact[label]) };
  if (!isShare) return { ...texts, share: `${value.toFixed(1)} per 100 WBC`, range: "" };
  const range = element(
    "div",
    { className: "range" },
    element("span", { className: "interval", style: { left: `${low}%`, width: `${high - low}%` } }),
    element("span", { className: "point", style: { left: `${value}%` } }),
  );
  return { ...texts, share: percent(value / 100), range };
}

// --- evaluation -------------------------------------------------------------------------------------

async function evaluate(file, signal) {
  const form = new FormData();
  form.append("archive", file, file.name);
  showProgress(`Uploading ${file.name}`, 0, 1);
  const response = await request("evaluate", {
    method: "POST",
    body: form,
    signal,
    headers: { Accept: "text/event-stream" },
  });
  for await (const { event, data } of serverSentEvents(response.body)) {
    if (event === "progress") {
      const rate = data.images_per_second ? `, ${data.images_per_second.toFixed(0)} images/s` : "";
      showProgress(`Evaluated ${data.done} of ${plural(data.total, "image")}${rate}`, data.done, data.total);
    } else if (event === "error") throw new Failure(data.title, data.detail, data);
    else if (event === "result") {
      Object.assign(state, { report: data, archive: file, shown: 0 });
      results.evaluation.change();
      await showReport();
      return;
    }
  }
  throw new Failure("The evaluation was interrupted.", "The connection was lost before the result arrived.");
}

async function* serverSentEvents(stream) {
  let incomplete = ""; // the start of an event whose end has not arrived
  for await (const text of textChunks(stream)) {
    const blocks = (incomplete + text).split(/\r?\n\r?\n/);
    incomplete = blocks.pop();
    for (const block of blocks) {
      const fields = block
        .split(/\r?\n/)
        .map((line) => line.match(/^(\w+): ?(.*)$/))
        .filter(Boolean);
      const data = fields
        .filter(([, name]) => name === "data")
        .map(([, , value]) => value)
        .join("\n");
      if (data) yield { event: fields.find(([, name]) => name === "event")?.[2], data: JSON.parse(data) };
    }
  }
}

async function* textChunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

async function showReport() {
  const report = state.report,
    { current, ...verification } = report.verification,
    level = percent(report.confidence_intervals.level, 0);
  const intervalText = ([low, high]) =>
    `${level} interval ${low.toFixed(3)} – ${high.toFixed(3)}, over ${report.confidence_intervals.unit}s`;
  const kept = current.right_when_kept;
  const scores = [
    ["Images", String(report.n), report.errors.length ? `${report.errors.length} not decoded, left out` : ""],
    ["Accuracy", percent(report.accuracy, 2), intervalText(report.confidence_intervals.accuracy)],
    ["Balanced accuracy", percent(verification.balanced_accuracy, 2), intervalText(verification.interval)],
    ["Sent to review", percent(current.review_share), "with the bundle’s thresholds"],
    ["Right when kept", kept === null ? "–" : percent(kept, 2), "accuracy of the images not sent to review"],
    ["Macro F1", number(report.macro_avg.f1), intervalText(report.confidence_intervals.macro_f1)],
    ["Weighted F1", number(report.weighted_avg.f1), ""],
    ["MSE", number(report.mse), "of class indices"],
    ["RMSE", number(report.rmse), "of class indices"],
    ["Cohen’s κ", number(report.cohen_kappa), ""],
    ["ROC AUC", number(report.roc_auc_ovr), "one class against the rest"],
    ["ECE", number(report.ece), "expected calibration error"],
  ];
  $("scores").replaceChildren(
    ...scores.map(([name, value, note]) =>
      element(
        "div",
        {},
        element("dt", { textContent: name }),
        element("dd", {}, value, element("small", { textContent: note })),
      ),
    ),
  );
  fillTable(
    $("confusion"),
    ["true \\ predicted", ...report.labels, "total"],
    report.labels.map((label, row) => [
      label,
      ...report.confusion_matrix[row],
      report.per_class[label].support,
    ]),
    (row, column) => row === column - 1,
  );
  const averages = [
    ["macro average", report.macro_avg],
    ["weighted average", report.weighted_avg],
  ];
  fillTable(
    $("by-class"),
    ["class", "precision", "recall", "F1", "specificity", "images"],
    [...report.labels.map((label) => [label, report.per_class[label]]), ...averages].map(([name, row]) => [
      name,
      number(row.precision),
      number(row.recall),
      number(row.f1),
      number(row.specificity),
      row.support,
    ]),
  );
  showReview(report.verification);
  report.misclassified.sort((a, b) => b.confidence - a.confidence);
  $("mistakes").replaceChildren();
  $("mistakes-title").textContent = report.misclassified.length
    ? `Misclassified images (${report.misclassified.length}), highest confidence first`
    : "No misclassified images";
  $("evaluation").hidden = false;
  for (const { detail } of report.warnings ?? []) showMessage("note", detail);
  for (const { title, filename, detail } of report.errors.slice(0, 5))
    showProblem(new Failure(title, `${filename}: ${detail}`));
  if (report.errors.length > 5)
    showProblem(
      new Failure(`${report.errors.length - 5} more images were left out.`, "The saved JSON lists them all."),
    );
  setStatus(`${plural(report.n, "image")} evaluated: accuracy ${percent(report.accuracy, 2)}.`);
  $("evaluation").scrollIntoView();
  await showMistakes();
}

// Show what the bundle's thresholds do to these images, those proposed for them, and what others would.
function showReview(verification) {
  const { current, proposed, target, warnings } = verification;
  const row = (name, { thresholds, review_share: share, right_when_kept: right }) => [
    name,
    number(thresholds.confidence),
    number(thresholds.ood_score),
    percent(share),
    right === null ? "–" : percent(right),
  ];
  fillTable(
    $("thresholds"),
    ["thresholds", "confidence at least", "OOD score at most", "sent to review", "right when kept"],
    [
      row("of the bundle", current),
      ...(proposed ? [row(`proposed, for ${percent(target, 0)} right`, proposed)] : []),
    ],
  );
  $("curve").replaceChildren(...curveParts(verification, proposed ?? current));
  $("cautions").replaceChildren(...warnings.map((text) => element("li", { textContent: text })));
}

const CURVE_BOTTOM = 0.5; // lowest share of right answers that is drawn

// Return the lines of the curve in a box of 460 × 260 pixels. marked: the thresholds that get a dot.
function curveParts({ curve, target }, marked) {
  const x = (share) => 44 + 392 * share,
    y = (share) => 10 + (206 * (1 - Math.max(share, CURVE_BOTTOM))) / (1 - CURVE_BOTTOM);
  const svg = (tag, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  };
  const across = (share, more = {}) => svg("line", { x1: x(0), x2: x(1), y1: y(share), y2: y(share), ...more });
  const ticks = [0.5, 0.6, 0.7, 0.8, 0.9, 1].flatMap((share) => [
    across(share),
    svg("text", { x: 38, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)),
  ]);
  const shares = [0, 0.25, 0.5, 0.75, 1].map((share) =>
    svg("text", { x: x(share), y: 238, "text-anchor": "middle" }, percent(share, 0)),
  );
  const points = curve.map(({ kept, right }) => `${x(kept)},${y(right)}`).join(" ");
  const { review_share: share, right_when_kept: right } = marked;
  return [
    ...ticks,
    ...shares,
    svg("text", { x: x(0.5), y: 256, "text-anchor": "middle" }, "kept without review"),
    across(target, { class: "target" }),
    svg("polyline", { points }),
    ...(right === null ? [] : [svg("circle", { cx: x(1 - share), cy: y(right), r: 5 })]),
  ];
}

// isDiagonal(row, column): whether a cell is highlighted as correct.
function fillTable(table, head, rows, isDiagonal = () => false) {
  const cells = (row, index) =>
    row.map((value, column) =>
      column === 0
        ? element("th", { scope: "row", textContent: value })
        : element("td", { textContent: value, className: isDiagonal(index, column) ? "correct" : "" }),
    );
  table.replaceChildren(
    table.caption,
    element(
      "thead",
      {},
      element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text }))),
    ),
    element("tbody", {}, ...rows.map((row, index) => element("tr", {}, ...cells(row, index)))),
  );
}

async function showMistakes() {
  const mistakes = state.report.misclassified.slice(state.shown, state.shown + MISTAKES_PER_PAGE);
  state.shown += mistakes.length;
  $("more-mistakes").hidden = state.shown >= state.report.misclassified.length;
  const listed = mistakes.length ? await readDirectory(state.archive).catch(() => []) : [];
  const entries = new Map(listed.map((entry) => [entry.name.normalize("NFC"), entry]));
  await Promise.all(
    mistakes.map(async (mistake) => {
      const preview = element("div", { className: "preview" }),
        fit = element("div", { className: "fit" });
      const showReason = (reason) => {
        preview.classList.add("unavailable");
        preview.dataset.reason = reason;
      };
      preview.append(fit);
      $("mistakes").append(
        element(
          "li",
          { className: "card" },
          preview,
          element(
            "div",
            { className: "text" },
            element(
              "h3",
              {},
              mistake.predicted,
              element("span", { textContent: percent(mistake.confidence) }),
            ),
            element("p", { className: "review", textContent: `⚑ Labelled ${mistake.label}.` }),
            element("p", { className: "name", textContent: mistake.filename }),
          ),
        ),
      );
      const entry = entries.get(mistake.filename.normalize("NFC"));
      if (!entry) {
        showReason("No preview: this page cannot read the image from the archive.");
        return;
      }
      try {
        const url = URL.createObjectURL(
          await extract(state.archive, entry, state.model.limits.max_image_mib * MIB),
        );
        const image = element("img", {
          alt: `${mistake.filename}: predicted ${mistake.predicted}, labelled ${mistake.label}`,
        });
        image.addEventListener("load", () => {
          setAspectRatio(fit, image);
          URL.revokeObjectURL(url);
        });
        image.addEventListener("error", () => {
          showReason("No preview: this browser cannot show this format.");
          URL.revokeObjectURL(url);
        });
        image.src = url;
        fit.append(image);
      } catch {
        showReason("No preview: this page cannot read the image from the archive.");
      }
    }),
  );
}

// --- downloads and curl -----------------------------------------------------------------------------

function save(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const saveJson = (name, value) =>
  save(name, new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));

function saveCsv(name, rows) {
  // A leading apostrophe keeps a spreadsheet from evaluating a text as a formula.
  const field = (value) => {
    const text = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  save(
    name,
    new Blob(["\ufeff", ...rows.map((row) => `${row.map(field).join(",")}\r\n`)], { type: "text/csv" }),
  );
}

function cellRows() {
  // Models that were switched meanwhile may have other classes: those of all cells are columns.
  const labels = [
    ...new Set(state.cells.flatMap(({ prediction }) => Object.keys(prediction?.probabilities ?? {}))),
  ];
  const head = [
    "filename",
    "label",
    "confidence",
    ...labels,
    "ood_score",
    "review",
    "review_reasons",
    "image_sha256",
    "error",
  ];
  return [
    head,
    ...state.cells.map(({ name, prediction, problem }) =>
      prediction
        ? [
            name,
            prediction.label,
            prediction.confidence,
            ...labels.map((label) => prediction.probabilities[label]),
            prediction.ood_score,
            prediction.review,
            prediction.review_reasons.join(" "),
            prediction.image_sha256,
            "",
          ]
        : [name, ...Array(head.length - 2).fill(""), problem?.detail],
    ),
  ];
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const formOption = (field, name) => `-F ${quote(`${field}=@"${name.replaceAll(/["\\]/g, "\\$&")}"`)}`;

function curlCommand(path, options) {
  const key = sessionStorage.getItem("leuko-key") ? ['-H "Authorization: Bearer $LEUKO_KEY"'] : [];
  return ["curl --fail-with-body", ...key, ...options, quote(new URL(path, document.baseURI).href)].join(
    " \\\n  ",
  );
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    setStatus("Copied.");
  } catch {
    throw new Failure("The browser does not allow copying. Copy this text yourself:", text);
  }
}

function differentialCommand() {
  const { specimen, accession } = differentialRequest();
  const identifiers = Object.entries({ specimen, accession }).filter(([, value]) => value);
  const classified = state.cells.filter((cell) => cell.prediction),
    archives = new Set(classified.map(({ archive }) => archive).filter(Boolean));
  const command = curlCommand("differential", [
    ...classified.map(({ name }) => formOption("files", name)),
    ...identifiers.map(([name, value]) => `--form-string ${quote(`${name}=${value}`)}`),
  ]);
  return [...[...archives].map((archive) => `unzip -nq ${quote(archive)}`), command].join(" &&\n");
}

const LOSS = "The results are not saved. Clear them all the same?";

// Forget the specimen: nothing of it may be reported under the next one's identifiers, nor under its own.
function clear() {
  if (isSpecimenUnsaved() && !window.confirm(LOSS)) return;
  state.specimen++;
  state.counting++;
  if (state.controller?.ofSpecimen) state.controller.abort();
  for (const cell of state.cells) if (cell.url) URL.revokeObjectURL(cell.url);
  Object.assign(state, { cells: [], uncounted: false });
  offerRetry();
  document.querySelector("#filter input").checked = true;
  for (const id of ["specimen-id", "accession-id"]) $(id).value = "";
  for (const id of ["specimen", "counted", "uncounted", "cells"]) $(id).hidden = true;
  $("cards").replaceChildren();
  $("problems").replaceChildren();
  setStatus("Cleared.");
  $("files").focus();
}

// --- event handlers ---------------------------------------------------------------------------------

const listen = (id, event, action) =>
  $(id).addEventListener(event, () => Promise.resolve().then(action).catch(showProblem));

function reportRows() {
  const { labels, per_class: scores, confusion_matrix: matrix } = state.report;
  return [
    [
      "class",
      "precision",
      "recall",
      "f1",
      "specificity",
      "support",
      ...labels.map((label) => `predicted ${label}`),
    ],
    ...labels.map((label, row) => [
      label,
      ...["precision", "recall", "f1", "specificity", "support"].map((name) => scores[label][name]),
      ...matrix[row],
    ]),
    [],
    ["filename", "label", "predicted", "confidence"],
    ...state.report.misclassified.map((mistake) => [
      mistake.filename,
      mistake.label,
      mistake.predicted,
      mistake.confidence,
    ]),
  ];
}

for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", (event) => {
    const items = [...event.target.files].map((file) => ({
      name: file.webkitRelativePath || file.name,
      file,
      inFolder: Boolean(file.webkitRelativePath),
    }));
    event.target.value = "";
    enqueue(() => process({ items, failed: [] }));
  });
}
if (!("webkitdirectory" in HTMLInputElement.prototype)) $("folder").parentElement.hidden = true;
// transfer: of a drop or paste. It is read at once, and used when its turn comes.
function receive(transfer) {
  const received = droppedItems(transfer);
  enqueue(async () => process(await received));
}
document.addEventListener("paste", (event) => receive(event.clipboardData));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  receive(event.dataTransfer);
});
listen("cancel", "click", () => state.controller?.abort());
listen("filter", "change", applyFilter);
for (const id of ["specimen-id", "accession-id"]) {
  $(id).addEventListener("input", () => results.specimen.change());
  listen(id, "change", updateDifferential);
}
window.addEventListener("beforeunload", (event) => {
  if (isSpecimenUnsaved() || results.evaluation.unsaved) event.preventDefault();
});
listen("clear", "click", clear);
listen("retry", "click", retry);
listen("copy-curl", "click", () => copy(differentialCommand()));
listen("copy-report-curl", "click", () =>
  copy(curlCommand("evaluate", [formOption("archive", state.archive.name)])),
);
// Results that change while the action waits for the service are not in its file.
const listenToSave = (id, kept, action) =>
  listen(id, "click", async () => {
    const { version } = kept;
    await action();
    kept.keep(version);
  });
// The service's response is saved as it is, once it is complete.
async function saveReport(name, accept) {
  const response = await request("differential", differentialOptions(differentialRequest(), accept));
  save(name, await response.blob());
}

listenToSave("save-json", results.specimen, async () => {
  const body = differentialRequest();
  const differential = await requestJson("differential", differentialOptions(body));
  saveJson("leuko.json", { differential, predictions: body.predictions, errors: body.errors });
});
listenToSave("save-csv", results.specimen, () => saveCsv("leuko.csv", cellRows()));
listenToSave("save-fhir", results.specimen, () => saveReport("leuko.fhir.json", "application/fhir+json"));
listenToSave("save-hl7", results.specimen, () => saveReport("leuko.hl7", "application/hl7-v2"));
listenToSave("save-report-json", results.evaluation, () => saveJson("leuko-evaluation.json", state.report));
listenToSave("save-report-csv", results.evaluation, () => saveCsv("leuko-evaluation.csv", reportRows()));
listen("more-mistakes", "click", showMistakes);

watchReadiness();
