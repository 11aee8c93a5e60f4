// The page at /: images in, answers out. Everything it says comes from the service's own API.

const LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"];
const BATCH = 8; // images in one request
const AT_ONCE = 2; // requests
const TRIES = 8; // of a request that may be repeated
const MOST_CELLS = 10_000; // in one differential
const MISTAKES = 24; // pictures shown at first
const MIB = 2 ** 20;

const $ = (id) => document.getElementById(id);
const state = { model: null, cells: [], report: null, archive: null, work: null, shown: 0 };

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

async function ask(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem("leuko-key");
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      if (attempt < 3) {
        await pause(attempt, options.signal);
        continue;
      }
      throw new Failure("The service does not answer.", "Is it running, and is the network up?");
    }
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    if (answer.status === 401 && (await askForKey(key ? "The service does not know this key." : "")))
      continue;
    if ((answer.status === 429 || answer.status === 503) && attempt < TRIES && !options.once) {
      say(`${problem.title ?? "Busy"}: trying again …`);
      await pause(Number(answer.headers.get("Retry-After")) || attempt, options.signal);
      continue;
    }
    throw new Failure(
      problem.title ?? `The service answered ${answer.status}.`,
      problem.detail ?? "",
      problem,
    );
  }
}

let asking = null; // one question at a time, whoever needs the answer
let declined = false; // then it is asked again only for what the user does

function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = $("ask-key");
    $("ask-key-why").textContent = why || "This service answers only those who show a key.";
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const key = dialog.returnValue === "use" ? $("key").value.trim() : "";
        declined = !key;
        if (key) sessionStorage.setItem("leuko-key", key);
        $("key").value = "";
        resolve(Boolean(key));
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

async function describeModel() {
  state.model = await (await ask("model")).json();
  $("model-name").textContent = state.model.name;
  $("model-version").textContent = state.model.version;
  $("model-sha256").textContent = state.model.sha256.slice(0, 12);
  $("model-sha256").title = state.model.sha256;
}

async function watch() {
  for (;;) {
    let words,
      mark = "away";
    try {
      const answer = await fetch("readyz", { cache: "no-store" });
      [words, mark] = answer.ok ? ["ready", "ready"] : [(await answer.json()).detail, "waiting"];
      if (answer.ok && !state.model && !asking && !declined) await describeModel().catch(complain);
    } catch {
      words = "does not answer";
    }
    if ($("readiness").textContent !== words) $("readiness").textContent = words;
    $("readiness").dataset.state = mark;
    await pause(mark === "ready" ? 10 : 2);
  }
}

// --- what is said to the user -----------------------------------------------------------------------

const say = (text) => {
  $("said").textContent = text;
};

function complain(error) {
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
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  for (const [name, value] of Object.entries(style ?? {})) made.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

function advance(doing, done, total) {
  $("progress").hidden = false;
  $("doing").textContent = doing;
  $("bar").max = Math.max(total, 1);
  $("bar").value = done;
}

// --- files ------------------------------------------------------------------------------------------

const isArchive = (file) => /\.zip$/i.test(file.name) || /zip/.test(file.type);

let last = Promise.resolve(); // what is given while something is under way waits for it

const take = (files) => {
  last = last.then(() => work(files));
};

async function work(files) {
  if (!files.length) return;
  $("problems").replaceChildren();
  const archives = files.filter(isArchive),
    images = files.filter((file) => !isArchive(file));
  if (archives.length > 1)
    complain(new Failure("One archive at a time.", `Only ${archives[0].name} is evaluated.`));
  state.work = new AbortController();
  say("");
  try {
    if (images.length) await classify(images, state.work.signal);
    if (archives.length) await evaluate(archives[0], state.work.signal);
  } catch (error) {
    complain(error);
    if (error.name === "AbortError") say("Cancelled.");
  } finally {
    state.work = null;
    $("progress").hidden = true;
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  while (entries.length) {
    const entry = entries.shift();
    if (entry.isFile) found.push(await new Promise((done, fail) => entry.file(done, fail)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, fail) => reader.readEntries(done, fail));
        if (!some.length) break;
        entries.push(...some);
      }
    }
  }
  return found.filter((file) => !file.name.startsWith(".") && (isArchive(file) || isImage(file)));
}

const isImage = (file) =>
  /^image\/|dicom/.test(file.type) || /\.(jpe?g|png|webp|tiff?|bmp|gif|dcm)$/i.test(file.name);

// --- classification ---------------------------------------------------------------------------------

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
  const most = state.model.limits.max_image_mib * MIB;
  const waiting = added.filter((cell) => {
    if (cell.file.size > most)
      fail(cell, { title: "Too large", detail: `The file is over ${state.model.limits.max_image_mib} MiB.` });
    return cell.file.size <= most;
  });
  const batch = Math.min(BATCH, state.model.limits.max_files);
  let done = added.length - waiting.length;
  const worker = async () => {
    while (waiting.length) {
      const cells = waiting.splice(0, batch);
      try {
        await classifyBatch(cells, signal);
      } catch (error) {
        waiting.length = 0;
        throw error;
      } finally {
        done += cells.length;
        advance(`Classified ${done} of ${plural(added.length, "image")}`, done, added.length);
      }
    }
  };
  advance(`Classifying ${plural(added.length, "image")}`, 0, added.length);
  try {
    const workers = await Promise.allSettled(Array.from({ length: AT_ONCE }, worker));
    const lost = workers.find((one) => one.status === "rejected");
    if (lost) throw lost.reason;
    const failed = added.filter((cell) => cell.problem).length;
    say(`${plural(added.length - failed, "image")} classified${failed ? `, ${failed} failed` : ""}.`);
  } finally {
    for (const cell of added)
      if (!cell.prediction && !cell.problem)
        fail(cell, { title: "Not sent", detail: "The work was stopped before." });
    await count();
  }
}

async function classifyBatch(cells, signal) {
  const form = new FormData();
  for (const cell of cells) form.append("files", cell.file, cell.file.name);
  let answer;
  try {
    answer = await (await ask("predict", { method: "POST", body: form, signal })).json();
  } catch (error) {
    const items = error.errors?.filter((one) => Number.isInteger(one.index)) ?? [];
    if (!items.length && !["too_large", "engine_error", "deadline_passed"].includes(error.code)) throw error;
    cells.forEach((cell, index) => fail(cell, items.find((one) => one.index === index) ?? error));
    return;
  }
  for (const one of answer.errors) fail(cells[one.index], one);
  for (const one of answer.predictions) {
    const cell = cells[one.index];
    cell.prediction = { ...one, filename: cell.file.name }; // a form would have escaped its quotes
    show(cell);
  }
}

function fail(cell, problem) {
  cell.problem = { title: problem.title, detail: problem.detail, code: problem.code };
  show(cell);
}

// --- cards ------------------------------------------------------------------------------------------

function show(cell) {
  const card = (cell.card = $("card").content.firstElementChild.cloneNode(true));
  const [picture, image] = [card.querySelector(".picture"), card.querySelector("img")];
  image.addEventListener("load", () => proportion(card.querySelector(".fit"), image));
  image.addEventListener("error", () => {
    picture.classList.add("blind");
    picture.dataset.why = "No preview: this browser cannot show it.";
  });
  image.src = cell.url;
  card.querySelector(".name").textContent = cell.file.name;
  if (cell.prediction) tell(cell, card);
  else {
    card.classList.add("failed-card");
    card.querySelector("h3").textContent = cell.problem.title;
    card.querySelector(".review").className = "failed";
    Object.assign(card.querySelector(".failed"), { hidden: false, textContent: cell.problem.detail });
    card.querySelector(".bars").remove();
    card.querySelector(".map").remove();
  }
  place(cell);
}

function proportion(fit, image) {
  const ratio = image.naturalWidth / image.naturalHeight;
  fit.style.setProperty("--ratio", ratio);
  fit.classList.toggle("tall", ratio < 4 / 3);
}

function place(cell) {
  // In the order in which they were given, whichever answer came first.
  const next = state.cells.slice(state.cells.indexOf(cell) + 1).find((one) => one.card?.isConnected);
  $("cards").insertBefore(cell.card, next?.card ?? null);
  $("cells").hidden = false;
  refilter();
}

const REASONS = {
  low_confidence: "the model is not sure",
  out_of_distribution: "it looks unlike the cells that the model learned from",
};

function tell(cell, card) {
  const { label, confidence, probabilities, review, review_reasons: reasons } = cell.prediction;
  card.classList.toggle("to-review", review);
  card.querySelector("h3").append(label, element("span", { textContent: percent(confidence) }));
  card.querySelector("img").alt = `${cell.file.name}: ${label}`;
  Object.assign(card.querySelector(".review"), {
    hidden: !review,
    textContent: `⚑ Review: ${reasons.map((reason) => REASONS[reason] ?? reason).join(", and ")}.`,
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
  button.addEventListener("click", () => toggleMap(cell, card, button).catch(complain));
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
    cell.cam ??= await explain(cell);
  } finally {
    button.disabled = false;
  }
  const canvas = drawMap(cell.cam, cell.prediction.frame, card.querySelector("img"));
  const slider = label.querySelector("input");
  const fade = () => {
    canvas.style.opacity = slider.value / 100;
  };
  slider.oninput = fade;
  fade();
  fit.append(canvas);
  label.hidden = false;
  button.setAttribute("aria-pressed", "true");
}

async function explain(cell) {
  const form = new FormData();
  form.append("files", cell.file, cell.file.name);
  const answer = await (await ask("predict?explain=cam", { method: "POST", body: form })).json();
  return answer.predictions[0].cam;
}

const HEAT = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
]; // matplotlib's inferno

function heat(value) {
  const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1),
    low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((one, channel) => one + (at - low) * (HEAT[low + 1][channel] - one));
}

function drawMap({ shape: [rows, columns], values }, frame, image) {
  const small = new OffscreenCanvas(columns, rows),
    pixels = new ImageData(columns, rows);
  values.flat().forEach((value, index) => pixels.data.set([...heat(value), 255], 4 * index));
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
  const sides = {
    left: frame.left / width,
    top: frame.top / height,
    width: frame.width / width,
    height: frame.height / height,
  };
  for (const [side, share] of Object.entries(sides)) canvas.style[side] = `${100 * share}%`;
  return canvas;
}

function refilter() {
  const wanted = document.querySelector("#filter input:checked").value;
  const tests = {
    all: () => true,
    review: (cell) => Boolean(cell.prediction?.review),
    failed: (cell) => Boolean(cell.problem),
  };
  for (const input of document.querySelectorAll("#filter input")) {
    input.parentElement.querySelector("output").textContent = state.cells.filter(tests[input.value]).length;
  }
  for (const cell of state.cells) if (cell.card) cell.card.hidden = !tests[wanted](cell);
}

// --- the differential -------------------------------------------------------------------------------

function countable() {
  const predictions = state.cells.filter((cell) => cell.prediction).map((cell) => cell.prediction);
  const whose = { specimen: $("specimen-id").value.trim(), accession: $("accession-id").value.trim() };
  return { predictions, ...whose };
}

const post = (accept = "application/json") =>
  ask("differential", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: accept },
    body: JSON.stringify(countable()),
  });

async function count() {
  const { predictions } = countable();
  if (!predictions.length) {
    $("specimen").hidden = true;
    return;
  }
  if (predictions.length > MOST_CELLS) {
    throw new Failure("Too many cells for one differential.", `At most ${MOST_CELLS} are counted together.`);
  }
  const found = await (await post()).json();
  $("differential").caption.textContent =
    `${plural(found.n, "classified cell")}, ${found.review.length} to review`;
  $("differential").tBodies[0].replaceChildren(
    ...LABELS.map((label) => {
      const [low, high] = found.intervals.wilson[label],
        [least, most] = found.intervals.exact[label];
      const range = element(
        "div",
        { className: "range" },
        element("span", {
          className: "interval",
          style: { left: `${low}%`, width: `${high - low}%`, background: "var(--class)" },
        }),
        element("span", {
          className: "point",
          style: { left: `${found.percent[label]}%`, background: "var(--class)" },
        }),
      );
      return element(
        "tr",
        { className: label },
        element("th", { scope: "row", textContent: label }),
        element("td", { textContent: found.counts[label] }),
        element("td", { textContent: percent(found.percent[label] / 100) }),
        element("td", { textContent: `${low.toFixed(1)} – ${high.toFixed(1)}` }),
        element("td", { textContent: `${least.toFixed(1)} – ${most.toFixed(1)}` }),
        element("td", { className: "wide", attributes: { "aria-hidden": "true" } }, range),
      );
    }),
  );
  $("warnings").replaceChildren(...found.warnings.map((one) => element("li", { textContent: one.detail })));
  $("specimen").hidden = false;
}

// --- evaluation -------------------------------------------------------------------------------------

async function evaluate(file, signal) {
  const form = new FormData();
  form.append("archive", file, file.name);
  advance(`Sending ${file.name}`, 0, 1);
  const answer = await ask("evaluate", {
    method: "POST",
    body: form,
    signal,
    headers: { Accept: "text/event-stream" },
  });
  for await (const { event, data } of events(answer.body)) {
    if (event === "progress") {
      const rate = data.images_per_second ? `, ${data.images_per_second.toFixed(0)} a second` : "";
      advance(`Evaluated ${data.done} of ${plural(data.total, "image")}${rate}`, data.done, data.total);
    } else if (event === "error") throw new Failure(data.title, data.detail, data);
    else if (event === "result") {
      Object.assign(state, { report: data, archive: file, shown: 0 });
      await showReport();
      return;
    }
  }
  throw new Failure("The evaluation broke off.", "The connection was lost before the result came.");
}

async function* events(stream) {
  let rest = "";
  for await (const text of chunks(stream)) {
    const blocks = (rest + text).split(/\r?\n\r?\n/);
    rest = blocks.pop();
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

async function* chunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

async function showReport() {
  const report = state.report,
    level = percent(report.confidence_intervals.level, 0);
  const within = ([low, high]) =>
    `${level} interval ${low.toFixed(3)} – ${high.toFixed(3)}, by ${report.confidence_intervals.unit}`;
  const scores = [
    ["Images", String(report.n), report.errors.length ? `${report.errors.length} left out` : ""],
    ["Accuracy", percent(report.accuracy, 2), within(report.confidence_intervals.accuracy)],
    ["Macro F1", number(report.macro_avg.f1), within(report.confidence_intervals.macro_f1)],
    ["Weighted F1", number(report.weighted_avg.f1), ""],
    ["MSE", number(report.mse), "of class indices"],
    ["RMSE", number(report.rmse), "of class indices"],
    ["Cohen’s κ", number(report.cohen_kappa), ""],
    ["ROC AUC", number(report.roc_auc_ovr), "one against the rest"],
    ["ECE", number(report.ece), "calibration error"],
  ];
  $("scores").replaceChildren(
    ...scores.map(([name, value, more]) =>
      element(
        "div",
        {},
        element("dt", { textContent: name }),
        element("dd", {}, value, element("small", { textContent: more })),
      ),
    ),
  );
  fill(
    $("confusion"),
    ["true \\ predicted", ...report.labels, "all"],
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
  fill(
    $("by-class"),
    ["class", "precision", "recall", "F1", "specificity", "images"],
    [...report.labels.map((label) => [label, report.per_class[label]]), ...averages].map(([name, one]) => [
      name,
      number(one.precision),
      number(one.recall),
      number(one.f1),
      number(one.specificity),
      one.support,
    ]),
  );
  report.misclassified.sort((one, other) => other.confidence - one.confidence);
  $("mistakes").replaceChildren();
  $("mistakes-title").textContent = report.misclassified.length
    ? `Worst of ${plural(report.misclassified.length, "mistake")}`
    : "No mistakes";
  $("evaluation").hidden = false;
  for (const one of report.errors.slice(0, 5))
    complain(new Failure(one.title, `${one.filename}: ${one.detail}`));
  if (report.errors.length > 5)
    complain(
      new Failure(`${report.errors.length - 5} more images were left out.`, "The JSON lists them all."),
    );
  say(`${plural(report.n, "image")} evaluated: accuracy ${percent(report.accuracy, 2)}.`);
  $("evaluation").scrollIntoView();
  await showMistakes();
}

function fill(table, head, rows, isHit = () => false) {
  const cells = (row, index) =>
    row.map((value, column) =>
      column === 0
        ? element("th", { scope: "row", textContent: value })
        : element("td", { textContent: value, className: isHit(index, column) ? "hit" : "" }),
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
  const some = state.report.misclassified.slice(state.shown, state.shown + MISTAKES);
  state.shown += some.length;
  $("more-mistakes").hidden = state.shown >= state.report.misclassified.length;
  const archive = some.length ? await directory(state.archive).catch(() => new Map()) : new Map();
  await Promise.all(
    some.map(async (mistake) => {
      const picture = element("div", { className: "picture" }),
        fit = element("div", { className: "fit" });
      const blind = (why) => {
        picture.classList.add("blind");
        picture.dataset.why = why;
      };
      picture.append(fit);
      $("mistakes").append(
        element(
          "li",
          { className: "card" },
          picture,
          element(
            "div",
            { className: "said" },
            element(
              "h3",
              {},
              mistake.predicted,
              element("span", { textContent: percent(mistake.confidence) }),
            ),
            element("p", { className: "review", textContent: `⚑ It is labelled ${mistake.label}.` }),
            element("p", { className: "name", textContent: mistake.filename }),
          ),
        ),
      );
      const entry = archive.get(mistake.filename);
      if (!entry) {
        blind("The picture cannot be read from the archive here.");
        return;
      }
      try {
        const url = URL.createObjectURL(await unpack(state.archive, entry));
        const image = element("img", {
          alt: `${mistake.filename}: predicted ${mistake.predicted}, labelled ${mistake.label}`,
        });
        image.addEventListener("load", () => {
          proportion(fit, image);
          URL.revokeObjectURL(url);
        });
        image.addEventListener("error", () => {
          blind("This browser cannot show this format.");
          URL.revokeObjectURL(url);
        });
        image.src = url;
        fit.append(image);
      } catch {
        blind("The picture cannot be read from the archive here.");
      }
    }),
  );
}

// --- ZIP, just enough to show a picture (APPNOTE 4.3) -----------------------------------------------

async function directory(file) {
  const tail = new DataView(await file.slice(-65_557).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("no directory");
  const [size, start] = [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  const view = new DataView(await file.slice(start, start + size).arrayBuffer()),
    found = new Map();
  for (let at = 0; at + 46 <= view.byteLength && view.getUint32(at, true) === 0x02014b50;) {
    const [method, packed, plain] = [
      view.getUint16(at + 10, true),
      view.getUint32(at + 20, true),
      view.getUint32(at + 24, true),
    ];
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const text = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at + 46, name));
    found.set(text.replaceAll("\\", "/"), { method, packed, plain, at: view.getUint32(at + 42, true) });
    at += 46 + name + extra + comment;
  }
  return found;
}

async function unpack(file, { method, packed, plain, at }) {
  if (plain > state.model.limits.max_image_mib * MIB || ![0, 8].includes(method))
    throw new Error("not shown");
  const head = new DataView(await file.slice(at, at + 30).arrayBuffer());
  const start = at + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const body = file.slice(start, start + packed);
  if (method === 0) return body;
  const reader = body.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader(),
    parts = [];
  for (let got = 0, next = await reader.read(); !next.done; next = await reader.read()) {
    if ((got += next.value.length) > plain) throw new Error("longer than it says");
    parts.push(next.value);
  }
  return new Blob(parts);
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
  // What a spreadsheet would take for a formula is made a text.
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
    ...state.cells.map(({ file, prediction: one, problem }) =>
      one
        ? [
            file.name,
            one.label,
            one.confidence,
            ...LABELS.map((label) => one.probabilities[label]),
            one.ood_score,
            one.review,
            one.review_reasons.join(" "),
            one.image_sha256,
            "",
          ]
        : [file.name, ...Array(10).fill(""), problem?.detail],
    ),
  ];
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const part = (name, file) => `-F ${quote(`${name}=@"${file.name.replaceAll(/["\\]/g, "\\$&")}"`)}`;

function curl(path, parts) {
  const key = sessionStorage.getItem("leuko-key") ? ['-H "Authorization: Bearer $LEUKO_KEY"'] : [];
  return ["curl --fail-with-body", ...key, ...parts, quote(new URL(path, document.baseURI).href)].join(
    " \\\n  ",
  );
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    throw new Failure("The browser does not let the page copy.", text);
  }
}

function curlOfCells() {
  const { specimen, accession } = countable();
  const whose = Object.entries({ specimen, accession }).filter(([, value]) => value);
  return curl("differential", [
    ...state.cells.filter((cell) => cell.prediction).map((cell) => part("files", cell.file)),
    ...whose.map(([name, value]) => `--form-string ${quote(`${name}=${value}`)}`),
  ]);
}

function clear() {
  for (const cell of state.cells) URL.revokeObjectURL(cell.url);
  state.cells = [];
  for (const id of ["specimen", "cells"]) $(id).hidden = true;
  $("cards").replaceChildren();
  $("problems").replaceChildren();
  say("Cleared.");
  $("files").focus();
}

// --- wiring -----------------------------------------------------------------------------------------

const on = (id, event, action) =>
  $(id).addEventListener(event, () => Promise.resolve().then(action).catch(complain));
const reports = {
  json: () => saveJson("leuko-evaluation.json", state.report),
  csv: () => saveCsv("leuko-evaluation.csv", reportRows()),
};

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
    ...state.report.misclassified.map((one) => [one.filename, one.label, one.predicted, one.confidence]),
  ];
}

$("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  take(files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take([...event.clipboardData.files]);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(await dropped(event.dataTransfer));
});
on("cancel", "click", () => state.work?.abort());
on("filter", "change", refilter);
on("specimen-id", "change", count);
on("accession-id", "change", count);
on("clear", "click", clear);
on("copy-curl", "click", () => copy(curlOfCells()));
on("copy-report-curl", "click", () => copy(curl("evaluate", [part("archive", state.archive)])));
on("save-json", "click", async () =>
  saveJson("leuko.json", {
    differential: await (await post()).json(),
    predictions: countable().predictions,
    errors: state.cells
      .filter((cell) => cell.problem)
      .map((cell) => ({ filename: cell.file.name, ...cell.problem })),
  }),
);
on("save-csv", "click", () => saveCsv("leuko.csv", cellRows()));
on("save-fhir", "click", async () =>
  save("leuko.fhir.json", await (await post("application/fhir+json")).blob()),
);
on("save-hl7", "click", async () => save("leuko.hl7", await (await post("application/hl7-v2")).blob()));
on("save-report-json", "click", reports.json);
on("save-report-csv", "click", reports.csv);
on("more-mistakes", "click", showMistakes);

watch();
