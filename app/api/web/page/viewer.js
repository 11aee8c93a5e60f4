// A cell on its field: the frames of all cells drawn on the picture, zoom, what the model says, and labels.

import { fetchActivationMap } from "./classify.js";
import { cropCanvas } from "./crops.js";
import { $, element, listen, percent, showProblem } from "./dom.js";
import { cellsInOrder, goTo } from "./galleries.js";
import { drawMap } from "./heat.js";
import { give, goToNext, labelButtons, pressOn, undo } from "./labelling.js";
import { markOf } from "./marks.js";
import { isChanged, labelOf, nameOf, specimen } from "./specimen.js";
import { isOpen, reasonsOf, titleOf } from "./words.js";

const STEP = 1.5; // of the zoom
const MOST_ZOOM = 12;
const MOST_BARS = 6; // probabilities of a cell

let shown = null, // the cell
  zoom = 1; // 1: the whole picture is in sight

export function openViewer(cell) {
  if (!$("viewer").open) {
    setZoom(1);
    $("viewer-done").textContent = "";
    $("viewer").showModal();
  }
  show(cell);
}

function show(cell) {
  const isOther = shown?.picture !== cell.picture;
  shown = cell;
  $("viewer-title").textContent = titleOf(cell);
  if (isOther) showPicture(cell.picture);
  showFrames();
  showText();
  bringIntoView();
}

// --- the picture ----------------------------------------------------------------------------------------

function showPicture({ url, isHidden }) {
  $("plane").classList.toggle("unavailable", Boolean(isHidden) || !url);
  $("field").src = url ?? "";
  $("field").alt = "";
}

function showFrames() {
  const { picture } = shown,
    { naturalWidth, naturalHeight } = $("field");
  const { width, height } = picture.size ?? { width: naturalWidth, height: naturalHeight };
  $("plane").style.setProperty("--ratio", width && height ? width / height : 4 / 3);
  $("plane").style.setProperty("--zoom", zoom);
  for (const old of $("plane").querySelectorAll(".frame, canvas")) old.remove();
  if (!width || !height) return;
  $("plane").append(
    ...picture.cells.map((cell) => {
      const frame = element(
        "button",
        {
          type: "button",
          className: "frame",
          tabIndex: -1,
          dataset: isOpen(cell) ? markOf(labelOf(cell), Object.keys(cell.prediction.probabilities)) : {},
          style: placement(cell.prediction.frame, { width, height }),
        },
        element("span", { textContent: cell.number + 1 }),
        element("span", { className: "label", textContent: isOpen(cell) ? nameOf(labelOf(cell)) : "" }),
      );
      if (cell === shown) frame.setAttribute("aria-current", "true");
      frame.addEventListener("click", () => move(cell));
      return frame;
    }),
  );
}

const placement = (frame, { width, height }) => ({
  left: `${(100 * frame.left) / width}%`,
  top: `${(100 * frame.top) / height}%`,
  width: `${(100 * frame.width) / width}%`,
  height: `${(100 * frame.height) / height}%`,
});

function setZoom(value) {
  zoom = Math.min(Math.max(value, 1), MOST_ZOOM);
  $("plane").style.setProperty("--zoom", zoom);
  $("zoom-text").textContent = `${Math.round(100 * zoom)} %`;
  bringIntoView();
}

function bringIntoView() {
  const frame = $("plane").querySelector('[aria-current="true"]'),
    stage = $("stage");
  if (!frame) return;
  stage.scrollTo(
    frame.offsetLeft + frame.offsetWidth / 2 - stage.clientWidth / 2,
    frame.offsetTop + frame.offsetHeight / 2 - stage.clientHeight / 2,
  );
}

// --- the text -------------------------------------------------------------------------------------------

function showText() {
  const { prediction, reviewed, canvas } = shown,
    isShown = isOpen(shown);
  const crop = cropCanvas();
  crop.getContext("2d").drawImage(canvas, 0, 0);
  $("viewer-crop").replaceChildren(crop);
  $("viewer-model").textContent = isShown
    ? `${prediction.label} ${percent(prediction.confidence)}`
    : "hidden";
  $("viewer-own").textContent = reviewed === null ? "none yet" : nameOf(reviewed);
  $("viewer-own").dataset.changed = isChanged(shown);
  $("viewer-reasons").replaceChildren(
    ...reasonsOf(shown).map((reason) => element("li", { textContent: `⚑ ${reason}` })),
  );
  $("viewer-bars").hidden = !isShown;
  $("viewer-bars").replaceChildren(...(isShown ? barsOf(prediction.probabilities) : []));
  $("viewer-map").hidden = !isShown;
  $("viewer-map").setAttribute("aria-pressed", "false");
  $("viewer-opacity").parentElement.hidden = true;
  for (const button of $("viewer-labels").children)
    button.setAttribute("aria-pressed", button.value === reviewed);
}

// Of many classes, a cell has the most probable ones and the sum of the others.
function barsOf(probabilities) {
  const names = Object.keys(probabilities);
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
  const shares =
    names.length <= MOST_BARS
      ? names
      : [...names].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST_BARS - 1);
  const rest = names.filter((name) => !shares.includes(name)),
    sum = rest.reduce((total, name) => total + probabilities[name], 0);
  return [
    ...shares.map((name) => bar(name, probabilities[name], markOf(name, names))),
    ...(rest.length ? [bar(`${rest.length} others`, sum, { others: "" })] : []),
  ];
}

async function toggleMap() {
  const button = $("viewer-map"),
    old = $("plane").querySelector("canvas"),
    cell = shown;
  if (old) {
    old.remove();
    $("viewer-opacity").parentElement.hidden = true;
    button.setAttribute("aria-pressed", "false");
    return;
  }
  button.disabled = true;
  try {
    cell.cam ??= await fetchActivationMap(cell);
  } finally {
    button.disabled = false;
  }
  if (cell !== shown || !cell.picture.size) return;
  const canvas = drawMap(cell.cam);
  Object.assign(canvas.style, placement(cell.prediction.frame, cell.picture.size));
  canvas.style.opacity = $("viewer-opacity").value / 100;
  $("plane").append(canvas);
  $("viewer-opacity").parentElement.hidden = false;
  button.setAttribute("aria-pressed", "true");
}

// --- events ---------------------------------------------------------------------------------------------

function move(cell) {
  if (!cell) return;
  goTo(cell);
  show(cell);
  $("stage").focus();
}

function step(by) {
  const cells = cellsInOrder();
  move(cells[cells.indexOf(shown) + by]);
}

function label(value) {
  give([shown], value);
}

function press(event) {
  if (event.target.matches("input, select")) return;
  if (pressOn([shown], event)) return;
  const actions = {
    "+": () => setZoom(zoom * STEP),
    "=": () => setZoom(zoom * STEP),
    "-": () => setZoom(zoom / STEP),
    0: () => setZoom(1),
    n: () => move(goToNext()),
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
  };
  const action = actions[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.startsWith("Arrow") && (zoom > 1 || event.target.matches("button"))) return; // they scroll
  event.preventDefault();
  action();
}

export function listenToViewer() {
  const fill = () => $("viewer-labels").replaceChildren(...labelButtons(label));
  fill();
  document.addEventListener("model", fill);
  // A label given here changes what is shown here.
  specimen.addEventListener("labelled", () => {
    if (!$("viewer").open) return;
    showFrames();
    showText();
    bringIntoView();
  });
  $("field").addEventListener("load", () => {
    if (!shown) return;
    showFrames();
    bringIntoView();
  });
  $("field").addEventListener("error", () => $("plane").classList.add("unavailable"));
  $("viewer").addEventListener("keydown", press);
  $("stage").addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      setZoom(zoom * (event.deltaY < 0 ? STEP : 1 / STEP));
    },
    { passive: false },
  );
  listen("zoom-in", "click", () => setZoom(zoom * STEP));
  listen("zoom-out", "click", () => setZoom(zoom / STEP));
  listen("zoom-fit", "click", () => setZoom(1));
  listen("viewer-back", "click", () => step(-1));
  listen("viewer-on", "click", () => step(1));
  listen("viewer-next", "click", () => move(goToNext()));
  listen("viewer-undo", "click", undo);
  listen("viewer-close", "click", () => $("viewer").close());
  $("viewer-map").addEventListener("click", () => toggleMap().catch(showProblem));
  $("viewer-opacity").addEventListener("input", (event) => {
    const canvas = $("plane").querySelector("canvas");
    if (canvas) canvas.style.opacity = event.target.value / 100;
  });
  $("viewer").addEventListener("close", () => {
    const cell = shown;
    shown = null;
    if (cell && specimen.cells.includes(cell)) goTo(cell);
  });
}
