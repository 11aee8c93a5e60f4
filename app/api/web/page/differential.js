// The differential count: asked of the service, it follows the labels that a person gives.

import { offerRetry, UNANSWERED } from "./classify.js";
import { $, element, Failure, listen, percent, plural, showProblem } from "./dom.js";
import { markOf } from "./marks.js";
import { requestJson } from "./service.js";
import { nameOf, specimen } from "./specimen.js";
import { isWorking } from "./work.js";

const MAX_CELLS = 10_000; // in a differential
const SETTLED_MS = 150; // labels that are given faster are counted together
const DEFAULT_GOAL = 100;
const METHODS = { exact: "exact, as in Rümke’s table", wilson: "Wilson" };

let turn = 0, // number of the last request: an earlier response is out of date
  isUncounted = false, // the last request failed
  counted = null, // the last response
  method = "exact",
  timer = 0;

// Return the body of POST /differential; a report says how many pictures could not be classified.
// running: pictures that are still on their way are no errors.
export function differentialBody({ running = false, ...more } = {}) {
  const models = new Map(specimen.cells.map(({ model }) => [model.sha256, model]));
  if (models.size > 1)
    throw new Failure(
      "The cells were classified by different models.",
      "The service was updated meanwhile. Clear the page and send the images again.",
    );
  const predictions = specimen.counted.map(({ picture, prediction, reviewed }) => ({
    ...prediction,
    index: picture.order,
    ...(reviewed !== null && { reviewed }),
  }));
  const errors = specimen.pictures.flatMap(({ cells, problem, empty, name, order }) => {
    if (cells.length || empty || (running && !problem)) return [];
    return [{ type: "about:blank", status: 0, ...UNANSWERED, ...problem, index: order, filename: name }];
  });
  const empty = specimen.pictures
    .filter(({ empty: reasons }) => reasons)
    .map(({ order, name }) => ({ index: order, filename: name }));
  return { predictions, errors, empty, ...specimen.ids, model: [...models.values()][0], ...more };
}

// Return the options of a request for a differential.
export const differentialOptions = (body, accept = "application/json") => ({
  method: "POST",
  headers: { "Content-Type": "application/json", Accept: accept },
  body: JSON.stringify(body),
});

export const countOf = (body) => requestJson("differential", differentialOptions(body));

export async function updateDifferential() {
  clearTimeout(timer);
  const mine = ++turn;
  showSections();
  if (!specimen.counted.length) {
    showCounted(specimen.cells.length > 0 && specimen.blind ? null : false);
    isUncounted = false;
    showCounter();
    return;
  }
  showCounter();
  try {
    const body = differentialBody({ running: isWorking() });
    if (body.predictions.length > MAX_CELLS)
      throw new Failure(
        "Too many cells for one differential.",
        `The limit is ${MAX_CELLS}. Clear the page to start a new one.`,
      );
    const differential = await countOf(body);
    if (mine === turn) showDifferential(differential);
  } catch (error) {
    if (mine !== turn) return;
    showCounted(false);
    throw error;
  }
}

function showSections() {
  $("specimen").hidden = !specimen.pictures.length;
  $("summary").hidden = !specimen.cells.length;
}

// isCounted: false if the count is out of date, which is then not shown; null if there is nothing to count.
function showCounted(isCounted) {
  isUncounted = isCounted === false;
  $("counted").hidden = !isCounted;
  $("uncounted").hidden = isCounted !== false;
  $("unlabelled").hidden = isCounted !== null;
  if (!isCounted) counted = null;
}

function showDifferential(differential) {
  counted = differential;
  const { n, leukocytes, counts } = differential,
    names = Object.keys(counts);
  const among = leukocytes === n ? "" : ` (${plural(leukocytes, "leukocyte")})`;
  $("differential").caption.textContent = `${plural(n, "classified cell")}${among}`;
  $("interval-method").textContent = METHODS[method];
  $("differential").tBodies[0].replaceChildren(
    ...names.map((label) => {
      const { share, interval, range } = amountOf(differential, label);
      return element(
        "tr",
        { dataset: markOf(label, names) },
        element("th", { scope: "row" }, nameOf(label), range),
        element("td", { textContent: counts[label] }),
        element("td", { textContent: share }),
        element("td", { textContent: interval }),
      );
    }),
  );
  $("warnings").replaceChildren(
    ...differential.warnings.map((warning) => element("li", { textContent: warning.detail })),
  );
  const { name, version, sha256 } = differential.model;
  $("answered-by").textContent = `Classified by ${name} ${version} (${sha256.slice(0, 12)}).`;
  showCounted(true);
  showCounter();
}

// Return what a row says of a class: percent of the leukocytes, or cells per 100 of them.
function amountOf(differential, label) {
  const { percent: shares, per_100_leukocytes: ratios } = differential;
  const isShare = label in shares,
    value = isShare ? shares[label] : ratios[label];
  if (value === undefined || value === null) return { share: "–", interval: "–", range: "" };
  const intervals = isShare ? differential.intervals : differential.intervals_per_100_leukocytes;
  const [low, high] = intervals[method][label];
  const interval = `${low.toFixed(1)} – ${high.toFixed(1)}`;
  if (!isShare) return { interval, share: `${value.toFixed(1)} per 100 WBC`, range: "" };
  const range = element(
    "div",
    { className: "range", attributes: { "aria-hidden": "true" } },
    element("span", { className: "interval", style: { left: `${low}%`, width: `${high - low}%` } }),
    element("span", { className: "point", style: { left: `${value}%` } }),
  );
  return { interval, share: percent(value / 100), range };
}

// --- the counter ----------------------------------------------------------------------------------------

export const goal = () => Math.max(1, Math.round(Number($("goal").value)) || DEFAULT_GOAL);

function showCounter() {
  const done = counted?.leukocytes ?? 0,
    most = goal(),
    waiting = specimen.waiting.length,
    { reviewed, kept } = specimen.agreement;
  $("counter").max = most;
  $("counter").value = Math.min(done, most);
  const isEnough = done >= most;
  $("counter-text").textContent =
    `${done} of ${most} leukocytes counted${isEnough ? "" : `, ${most - done} to go`}`;
  $("waiting-text").textContent = waiting
    ? `${plural(waiting, "cell")} ${specimen.blind ? "to label" : "to review"}`
    : "No cell waits for review";
  $("waiting-text").dataset.waiting = waiting > 0;
  $("agreement").textContent = reviewed
    ? `You kept the model’s label for ${kept} of ${plural(reviewed, "cell")} that you judged ` +
      `(${percent(kept / reviewed)}).`
    : "You have not judged a cell yet.";
}

export function listenToDifferential() {
  specimen.addEventListener("labelled", () => {
    showSections();
    showCounter();
    clearTimeout(timer);
    timer = setTimeout(() => updateDifferential().catch(showProblem), SETTLED_MS);
  });
  // The count of the cells whose labels were open is not that of those that are now.
  specimen.addEventListener("blinded", () => {
    turn++;
    counted = null;
    $("counted").hidden = true;
  });
  specimen.addEventListener("cleared", () => {
    clearTimeout(timer);
    turn++;
    counted = null;
    isUncounted = false;
    for (const id of ["specimen", "summary", "counted", "uncounted", "unlabelled"]) $(id).hidden = true;
  });
  for (const type of ["worked", "restored"]) document.addEventListener(type, () => offerRetry(isUncounted));
  listen("goal", "input", showCounter);
  listen("other-interval", "click", () => {
    method = method === "exact" ? "wilson" : "exact";
    $("other-interval").textContent =
      method === "exact" ? "Show Wilson’s interval" : "Show the exact interval";
    if (counted) showDifferential(counted);
  });
}
