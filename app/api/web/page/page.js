// The page at /: send images, show the results. It calls the same HTTP API as any other client.

const LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"];
const BATCH_SIZE = 8; // images in a request
const CONCURRENT_REQUESTS = 2;
const MAX_ATTEMPTS = 8; // of a request that is answered 429 or 503
const MAX_NETWORK_ATTEMPTS = 3; // of a request without an answer
const MAX_CELLS = 10_000; // in a differential
const MISTAKES_PER_PAGE = 24;
// Errors of one request that say nothing about the others.
const IMAGE_CODES = ["too_large", "engine_error", "deadline_passed"];
const MIB = 2 ** 20;

const $ = (id) => document.getElementById(id);
// saved: the results are in a file, as they are now.
const state = {
  model: null, cells: [], report: null, archive: null, controller: null, shown: 0, saved: true,
};

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

async function describeModel() {
  state.model = await (await request("model")).json();
  $("model-name").textContent = state.model.name;
  $("model-version").textContent = state.model.version;
  $("model-sha256").textContent = state.model.sha256.slice(0, 12);
  $("model-sha256").title = state.model.sha256;
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
  const row = element("div", { className: "problem" });
  const text = element(
    "p",
    {},
    element("strong", { textContent: error.title ?? "Something went wrong." }),
    ` ${error.detail ?? error.message}`,
  );
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

const isArchive = (file) => /\.zip$/i.test(file.name) || /zip/.test(file.type);

let queue = Promise.resolve(); // files that arrive during an upload wait for its end

const enqueue = (files) => {
  queue = queue.then(() => process(files));
};

// Run work that the user may cancel; show what stops it, and offer to send again what was not answered.
async function supervise(work) {
  state.controller = new AbortController();
  setStatus("");
  try {
    await work(state.controller.signal);
  } catch (error) {
    showProblem(error);
    setStatus(error.name === "AbortError" ? "Cancelled." : "");
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
  $("retry").hidden = !count;
  $("retry").textContent = `Send ${plural(count, "image")} again`;
}

function retry() {
  $("problems").replaceChildren();
  queue = queue.then(() => supervise((signal) => send(state.cells.filter(isUnanswered), signal)));
}

async function process(files) {
  if (!files.length) return;
  $("problems").replaceChildren();
  const archives = files.filter(isArchive),
    images = files.filter((file) => !isArchive(file));
  if (archives.length > 1)
    showProblem(
      new Failure("Only one archive at a time.", `${archives[0].name} is evaluated; the others are ignored.`),
    );
  await supervise(async (signal) => {
    if (images.length) await classify(images, signal);
    if (archives.length) await evaluate(archives[0], signal);
  });
}

// Return the files of a drop, with those inside dropped folders.
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  while (entries.length) {
    const entry = entries.shift();
    if (entry.isFile) files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    else {
      const reader = entry.createReader();
      for (;;) {
        // One call returns at most a part of the folder; an empty list is the end.
        const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!children.length) break;
        entries.push(...children);
      }
    }
  }
  return files.filter((file) => !file.name.startsWith(".") && (isArchive(file) || isImage(file)));
}

const isImage = (file) =>
  /^image\/|dicom/.test(file.type) || /\.(jpe?g|png|webp|tiff?|bmp|gif|dcm)$/i.test(file.name);

// --- classification ---------------------------------------------------------------------------------

const UNANSWERED = {
  title: "Not classified",
  detail: "The upload stopped before this image.",
  code: "not_answered",
};
const RETRIABLE = [408, 429, 502, 503, 504]; // statuses of images that may be classified if they are sent again

async function classify(files, signal) {
  if (!state.model) await describeModel();
  const added = files.map((file) => ({
    file,
    url: URL.createObjectURL(file),
    prediction: null,
    problem: null,
    card: null,
  }));
  state.cells.push(...added);
  await send(added, signal);
}

// Classify cells, some of them perhaps not for the first time.
async function send(cells, signal) {
  for (const cell of cells) {
    cell.card?.remove();
    Object.assign(cell, { card: null, problem: null });
  }
  const maxMib = state.model.limits.max_image_mib;
  const pending = cells.filter((cell) => {
    const tooLarge = cell.file.size > maxMib * MIB;
    if (tooLarge) markFailed(cell, { title: "Too large", detail: `The file is larger than ${maxMib} MiB.` });
    return !tooLarge;
  });
  const batchSize = Math.min(BATCH_SIZE, state.model.limits.max_files);
  let done = cells.length - pending.length;
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
        showProgress(`Classified ${done} of ${plural(cells.length, "image")}`, done, cells.length);
      }
    }
  };
  showProgress(`Classifying ${plural(cells.length, "image")}`, 0, cells.length);
  try {
    const workers = await Promise.allSettled(Array.from({ length: CONCURRENT_REQUESTS }, worker));
    const rejected = workers.find((result) => result.status === "rejected");
    if (rejected) throw rejected.reason;
  } finally {
    for (const cell of cells) if (!cell.prediction && !cell.problem) markFailed(cell, UNANSWERED);
    await updateDifferential().catch(showProblem);
  }
  // Last, so that all results are on the page when a screen reader announces this.
  const failed = cells.filter((cell) => cell.problem).length;
  setStatus(`${plural(cells.length - failed, "image")} classified${failed ? `, ${failed} failed` : ""}.`);
}

async function classifyBatch(cells, signal) {
  const form = new FormData();
  for (const cell of cells) form.append("files", cell.file, cell.file.name);
  let response;
  try {
    response = await (await request("predict", { method: "POST", body: form, signal })).json();
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
    // The file's own name: the one in the response has its quotes escaped, as multipart forms require.
    cell.prediction = { ...prediction, filename: cell.file.name };
    state.saved = false;
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
  showCard(cell);
}

// --- cards ------------------------------------------------------------------------------------------

function showCard(cell) {
  const card = (cell.card = $("card").content.firstElementChild.cloneNode(true));
  const [preview, image] = [card.querySelector(".preview"), card.querySelector("img")];
  image.addEventListener("load", () => setAspectRatio(card.querySelector(".fit"), image));
  image.addEventListener("error", () => {
    preview.classList.add("unavailable");
    preview.dataset.reason = "No preview: this browser cannot show this format.";
  });
  image.src = cell.url;
  card.querySelector(".name").textContent = cell.file.name;
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
  card.querySelector("img").alt = `${cell.file.name}: ${label}`;
  Object.assign(card.querySelector(".review"), {
    hidden: !review,
    textContent: `⚑ Review: ${reasons.map((reason) => REASONS[reason] ?? reason).join("; ")}.`,
  });
  const bars = LABELS.map((name) =>
    element(
      "li",
      { className: name },
      element("span", { textContent: name }),
      element(
        "span",
        { className: "track", attributes: { "aria-hidden": "true" } },
        element("i", { style: { width: percent(probabilities[name]).replace(" ", "") } }),
      ),
      element("span", { textContent: percent(probabilities[name]) }),
    ),
  );
  card.querySelector(".bars").append(...bars);
  card.querySelector(".bars").setAttribute("aria-label", "Probabilities");
  const button = card.querySelector(".map button");
  button.setAttribute("aria-label", `Activation map of ${cell.file.name}`);
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
  form.append("files", cell.file, cell.file.name);
  const response = await (await request("predict?explain=cam", { method: "POST", body: form })).json();
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
  const errors = state.cells.flatMap(({ prediction, problem, file }, index) => {
    if (prediction || (running && !problem)) return [];
    const about = { type: "about:blank", status: 0, ...UNANSWERED, ...problem };
    return [{ ...about, index, filename: file.name }];
  });
  const [specimen, accession] = ["specimen-id", "accession-id"].map((id) => $(id).value.trim());
  return { predictions, errors, specimen, accession };
}

const requestDifferential = (accept = "application/json", running = false) =>
  request("differential", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: accept },
    body: JSON.stringify(differentialRequest(running)),
  });

async function updateDifferential() {
  const { predictions } = differentialRequest();
  if (!predictions.length) {
    $("specimen").hidden = true;
    return;
  }
  if (predictions.length > MAX_CELLS) {
    throw new Failure(
      "Too many cells for one differential.",
      `The limit is ${MAX_CELLS}. Clear the page to start a new one.`,
    );
  }
  const running = state.controller !== null;
  const differential = await (await requestDifferential("application/json", running)).json();
  $("differential").caption.textContent =
    `${plural(differential.n, "classified cell")}, ${differential.review.length} to review`;
  $("differential").tBodies[0].replaceChildren(
    ...LABELS.map((label) => {
      const [low, high] = differential.intervals.wilson[label],
        [exactLow, exactHigh] = differential.intervals.exact[label];
      const range = element(
        "div",
        { className: "range" },
        element("span", {
          className: "interval",
          style: { left: `${low}%`, width: `${high - low}%`, background: "var(--class)" },
        }),
        element("span", {
          className: "point",
          style: { left: `${differential.percent[label]}%`, background: "var(--class)" },
        }),
      );
      return element(
        "tr",
        { className: label },
        element("th", { scope: "row", textContent: label }),
        element("td", { textContent: differential.counts[label] }),
        element("td", { textContent: percent(differential.percent[label] / 100) }),
        element("td", { textContent: `${low.toFixed(1)} – ${high.toFixed(1)}` }),
        element("td", { textContent: `${exactLow.toFixed(1)} – ${exactHigh.toFixed(1)}` }),
        element("td", { className: "wide", attributes: { "aria-hidden": "true" } }, range),
      );
    }),
  );
  $("warnings").replaceChildren(
    ...differential.warnings.map((warning) => element("li", { textContent: warning.detail })),
  );
  $("specimen").hidden = false;
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
    level = percent(report.confidence_intervals.level, 0);
  const intervalText = ([low, high]) =>
    `${level} interval ${low.toFixed(3)} – ${high.toFixed(3)}, over ${report.confidence_intervals.unit}s`;
  const scores = [
    ["Images", String(report.n), report.errors.length ? `${report.errors.length} not decoded, left out` : ""],
    ["Accuracy", percent(report.accuracy, 2), intervalText(report.confidence_intervals.accuracy)],
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
  report.misclassified.sort((a, b) => b.confidence - a.confidence);
  $("mistakes").replaceChildren();
  $("mistakes-title").textContent = report.misclassified.length
    ? `Misclassified images (${report.misclassified.length}), highest confidence first`
    : "No misclassified images";
  $("evaluation").hidden = false;
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
  const entries = mistakes.length ? await readDirectory(state.archive).catch(() => new Map()) : new Map();
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
      const entry = entries.get(mistake.filename);
      if (!entry) {
        showReason("No preview: this page cannot read the image from the archive.");
        return;
      }
      try {
        const url = URL.createObjectURL(await extract(state.archive, entry));
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

// --- ZIP: what previews need (APPNOTE 4.3) ----------------------------------------------------------

// Return the entries of a ZIP file by name.
async function readDirectory(file) {
  const tail = new DataView(await file.slice(-65_557).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the ZIP has no central directory");
  const [size, start] = [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  const view = new DataView(await file.slice(start, start + size).arrayBuffer()),
    entries = new Map();
  for (let at = 0; at + 46 <= view.byteLength && view.getUint32(at, true) === 0x02014b50;) {
    const [method, compressedSize, plainSize] = [
      view.getUint16(at + 10, true),
      view.getUint32(at + 20, true),
      view.getUint32(at + 24, true),
    ];
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const text = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at + 46, name));
    entries.set(text.replaceAll("\\", "/"), {
      method,
      compressedSize,
      plainSize,
      offset: view.getUint32(at + 42, true),
    });
    at += 46 + name + extra + comment;
  }
  return entries;
}

// Return one entry's data; stored and deflated entries only, up to the service's limit for an image.
async function extract(file, { method, compressedSize, plainSize, offset }) {
  if (plainSize > state.model.limits.max_image_mib * MIB || ![0, 8].includes(method))
    throw new Error("entry too large or its compression not supported");
  const head = new DataView(await file.slice(offset, offset + 30).arrayBuffer());
  const start = offset + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const body = file.slice(start, start + compressedSize);
  if (method === 0) return body;
  const reader = body.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader(),
    chunks = [];
  for (let size = 0, next = await reader.read(); !next.done; next = await reader.read()) {
    if ((size += next.value.length) > plainSize) throw new Error("entry exceeds its declared size");
    chunks.push(next.value);
  }
  return new Blob(chunks);
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
  const head = [
    "filename",
    "label",
    "confidence",
    ...LABELS,
    "ood_score",
    "review",
    "review_reasons",
    "image_sha256",
    "error",
  ];
  return [
    head,
    ...state.cells.map(({ file, prediction, problem }) =>
      prediction
        ? [
            file.name,
            prediction.label,
            prediction.confidence,
            ...LABELS.map((label) => prediction.probabilities[label]),
            prediction.ood_score,
            prediction.review,
            prediction.review_reasons.join(" "),
            prediction.image_sha256,
            "",
          ]
        : [file.name, ...Array(10).fill(""), problem?.detail],
    ),
  ];
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const formOption = (name, file) => `-F ${quote(`${name}=@"${file.name.replaceAll(/["\\]/g, "\\$&")}"`)}`;

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
  return curlCommand("differential", [
    ...state.cells.filter((cell) => cell.prediction).map((cell) => formOption("files", cell.file)),
    ...identifiers.map(([name, value]) => `--form-string ${quote(`${name}=${value}`)}`),
  ]);
}

const LOSS = "The results are not saved. Clear them all the same?";

// Forget the specimen: nothing of it may be reported under the next one's identifiers, nor under its own.
function clear() {
  if (!state.saved && !window.confirm(LOSS)) return;
  state.controller?.abort();
  for (const cell of state.cells) URL.revokeObjectURL(cell.url);
  Object.assign(state, { cells: [], saved: true });
  offerRetry();
  for (const id of ["specimen-id", "accession-id"]) $(id).value = "";
  for (const id of ["specimen", "cells"]) $(id).hidden = true;
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

$("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  enqueue(files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) enqueue([...event.clipboardData.files]);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  enqueue(await droppedFiles(event.dataTransfer));
});
listen("cancel", "click", () => state.controller?.abort());
listen("filter", "change", applyFilter);
for (const id of ["specimen-id", "accession-id"]) {
  $(id).addEventListener("input", () => {
    if (state.cells.some((cell) => cell.prediction)) state.saved = false;
  });
  listen(id, "change", updateDifferential);
}
window.addEventListener("beforeunload", (event) => {
  if (!state.saved) event.preventDefault();
});
listen("clear", "click", clear);
listen("retry", "click", retry);
listen("copy-curl", "click", () => copy(differentialCommand()));
listen("copy-report-curl", "click", () =>
  copy(curlCommand("evaluate", [formOption("archive", state.archive)])),
);
const listenToSave = (id, action) =>
  listen(id, "click", async () => {
    await action();
    state.saved = true;
  });

listenToSave("save-json", async () => {
  const differential = await (await requestDifferential()).json();
  const { predictions, errors } = differentialRequest();
  saveJson("leuko.json", { differential, predictions, errors });
});
listenToSave("save-csv", () => saveCsv("leuko.csv", cellRows()));
listenToSave("save-fhir", async () =>
  save("leuko.fhir.json", await (await requestDifferential("application/fhir+json")).blob()),
);
listenToSave("save-hl7", async () =>
  save("leuko.hl7", await (await requestDifferential("application/hl7-v2")).blob()),
);
listen("save-report-json", "click", () => saveJson("leuko-evaluation.json", state.report));
listen("save-report-csv", "click", () => saveCsv("leuko-evaluation.csv", reportRows()));
listen("more-mistakes", "click", showMistakes);

watchReadiness();
