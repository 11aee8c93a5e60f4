// Galleries: the cells by class, those that wait for a person in front. A gallery is a list box: one tab stop,
// arrow keys inside. A cell that gets another label moves alone; nothing else is drawn again.

import { cropCanvas, drawCrops } from "./crops.js";
import { $, element, percent, plural } from "./dom.js";
import { markOf } from "./marks.js";
import { labels } from "./model.js";
import { HIDDEN, isChanged, nameOf, NOT_A_CELL, specimen, TO_REVIEW, UNIDENTIFIED } from "./specimen.js";
import { describe, isOpen, reasonsOf, titleOf } from "./words.js";

const MANY_LABELS = 9; // of more labels, only those with cells have a gallery in sight

const galleries = new Map(); // place → { section, list, count, button }
const cellsOf = new WeakMap(); // tile → cell
const selected = new Set();
let anchor = null; // where a range of selected cells begins
let isPicking = false; // a click adds to the selection, for touch

export const selection = () => specimen.cells.filter((cell) => selected.has(cell));
export const cellOf = (tile) => cellsOf.get(tile);

// --- galleries ------------------------------------------------------------------------------------------

const placesInOrder = () => [
  ...[HIDDEN, TO_REVIEW],
  ...labels(),
  ...[...galleries.keys()].filter((place) => !isUsual(place)),
  ...[UNIDENTIFIED, NOT_A_CELL],
];
const isUsual = (place) =>
  [HIDDEN, TO_REVIEW, UNIDENTIFIED, NOT_A_CELL].includes(place) || labels().includes(place);

function galleryOf(place) {
  if (galleries.has(place)) return galleries.get(place);
  const id = `gallery-${galleries.size}`,
    count = element("output"),
    title = element("h3", { id }, nameOf(place), " ", count);
  const button = element("button", { type: "button", textContent: "Confirm all" });
  button.setAttribute("aria-describedby", id);
  const list = element("ul", {
    className: "tiles",
    attributes: { role: "listbox", "aria-multiselectable": "true", "aria-labelledby": id },
  });
  const section = element(
    "section",
    { className: "gallery", dataset: { place, ...(isClass(place) && markOf(place, labels())) } },
    element("div", { className: "row" }, title, button),
    list,
  );
  const gallery = { section, list, count, button };
  galleries.set(place, gallery);
  const order = placesInOrder();
  const next = order.slice(order.indexOf(place) + 1).find((name) => galleries.has(name));
  $("galleries").insertBefore(section, next ? galleries.get(next).section : null);
  return gallery;
}

const isClass = (place) => ![HIDDEN, TO_REVIEW, UNIDENTIFIED, NOT_A_CELL].includes(place);

// Make the galleries of all labels, and say how many cells each has.
export function refreshGalleries() {
  for (const place of [TO_REVIEW, ...labels(), UNIDENTIFIED, NOT_A_CELL]) galleryOf(place);
  for (const [place, { section, list, count, button }] of galleries) {
    const some = list.childElementCount;
    count.textContent = some;
    list.hidden = !some;
    section.hidden = !some && (!labels().includes(place) || labels().length > MANY_LABELS || specimen.blind);
    section.classList.toggle("empty", !some);
    // What waits for a person is judged cell by cell.
    button.hidden = !isClass(place) || ![...list.children].some((tile) => isConfirmable(cellOf(tile)));
    keepOneTabStop(list);
  }
}

const isConfirmable = (cell) => cell.reviewed === null && isOpen(cell);

function keepOneTabStop(list) {
  if (!list.querySelector(':scope > [tabindex="0"]:not([hidden])')) {
    for (const tile of list.querySelectorAll(':scope > [tabindex="0"]')) tile.tabIndex = -1;
    const first = list.querySelector(":scope > :not([hidden])");
    if (first) first.tabIndex = 0;
  }
}

// --- tiles ----------------------------------------------------------------------------------------------

const BADGES = { waiting: "⚑", changed: "✎", confirmed: "✓" };

function makeTile(cell) {
  cell.canvas = cropCanvas();
  cell.tile = element(
    "li",
    {
      className: "tile",
      draggable: true,
      tabIndex: -1,
      attributes: { role: "option", "aria-selected": "false" },
    },
    element("span", { className: "crop" }, cell.canvas, lookSign()),
    element("span", { className: "badge", attributes: { "aria-hidden": "true" } }),
    element("span", { className: "said" }),
    element("span", { className: "name" }),
  );
  cellsOf.set(cell.tile, cell);
}

// A click on it shows the cell on its field, as Enter does: an option of a list box holds no button.
const lookSign = () =>
  element("span", {
    className: "look",
    textContent: "⤢",
    title: "Show on field (Enter)",
    attributes: { "aria-hidden": "true" },
  });

// Show the label of a cell on its tile, and put the tile where it belongs.
function showCell(cell) {
  const { tile, prediction } = cell,
    place = specimen.placeOf(cell),
    { list } = galleryOf(place);
  const state = specimen.isWaiting(cell)
    ? "waiting"
    : isChanged(cell)
      ? "changed"
      : cell.reviewed !== null
        ? "confirmed"
        : "";
  tile.dataset.state = state;
  tile.querySelector(".badge").textContent = BADGES[state] ?? "";
  tile.querySelector(".said").textContent = saidOf(cell, place);
  tile.querySelector(".name").textContent =
    cell.picture.mode === "all" ? `${cell.picture.name} · ${cell.number + 1}` : cell.picture.name;
  tile.title = isOpen(cell) ? [titleOf(cell), ...reasonsOf(cell)].join("\n") : titleOf(cell);
  tile.setAttribute("aria-label", describe(cell));
  for (const key of ["class", "hue", "pattern"]) delete tile.dataset[key];
  if (isOpen(cell) && place === TO_REVIEW) Object.assign(tile.dataset, markOf(prediction.label, labels()));
  if (tile.parentElement !== list) {
    tile.tabIndex = -1;
    list.insertBefore(tile, nextTile(list, cell));
  }
}

function saidOf(cell, place) {
  const { label, confidence } = cell.prediction;
  if (!isOpen(cell)) return "";
  if (isChanged(cell)) return `model: ${label}`;
  return place === TO_REVIEW ? `${label} ${percent(confidence, 0)}` : percent(confidence, 0);
}

// Return the first tile that comes after a cell, whose tiles are in the order of pictures and cells.
function nextTile(list, cell) {
  const tiles = list.children;
  let [low, high] = [0, tiles.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(cellOf(tiles[middle]), cell)) low = middle + 1;
    else high = middle;
  }
  return tiles[low] ?? null;
}

const isBefore = (a, b) =>
  a.picture.order !== b.picture.order ? a.picture.order < b.picture.order : a.number < b.number;

// --- filters --------------------------------------------------------------------------------------------

const FILTERS = {
  all: () => true,
  review: (cell) => specimen.isWaiting(cell),
  unjudged: ({ reviewed }) => reviewed === null,
  changed: (cell) => isOpen(cell) && isChanged(cell),
};

export function applyFilter(cells = specimen.cells) {
  const chosen = document.querySelector("#filter input:checked").value,
    picture = $("filter-picture").value;
  for (const cell of cells)
    cell.tile.hidden = !FILTERS[chosen](cell) || (picture !== "" && String(cell.picture.order) !== picture);
  if ([...selected].some(({ tile }) => tile.hidden)) select([...selected]);
  for (const input of document.querySelectorAll("#filter input"))
    input.parentElement.querySelector("output").textContent = specimen.cells.filter(
      FILTERS[input.value],
    ).length;
}

function listPictures() {
  const chosen = $("filter-picture").value,
    pictures = specimen.pictures.filter(({ cells }) => cells.length);
  $("filter-picture").replaceChildren(
    element("option", { value: "", textContent: `all ${pictures.length}` }),
    ...pictures.map(({ name, order, cells }) =>
      element("option", { value: order, textContent: `${name} (${cells.length})` }),
    ),
  );
  $("filter-picture").value = chosen;
  if ($("filter-picture").selectedIndex < 0) $("filter-picture").value = "";
}

// --- selection and focus --------------------------------------------------------------------------------

// Select cells. One that a filter hides is never selected: nobody would see what happens to it.
export function select(cells) {
  const before = new Set(selected),
    chosen = cells.filter(({ tile }) => !tile.hidden);
  selected.clear();
  for (const cell of chosen) selected.add(cell);
  for (const cell of new Set([...before, ...selected]))
    cell.tile.setAttribute("aria-selected", selected.has(cell));
  $("chosen").textContent = selected.size > 1 ? plural(selected.size, "cell") + " selected" : "";
  document.dispatchEvent(new Event("selected"));
}

// Move the focus, and with it the gallery's tab stop, to a tile that is in sight.
function focusInSight(tile) {
  for (const other of tile.parentElement.querySelectorAll(':scope > [tabindex="0"]')) other.tabIndex = -1;
  tile.tabIndex = 0;
  tile.focus({ preventScroll: true });
}

// Move the focus to a tile, and the tile into sight.
function focusTile(tile) {
  focusInSight(tile);
  tile.scrollIntoView({ block: "nearest" });
}

const visible = (list) => [...list.children].filter(({ hidden }) => !hidden);

// Select the cells from the anchor to a tile of the same gallery.
function selectTo(tile) {
  const tiles = visible(tile.parentElement);
  const from = tiles.indexOf(anchor),
    to = tiles.indexOf(tile);
  if (from < 0) return chooseAlone(tile);
  const [low, high] = from < to ? [from, to] : [to, from];
  return select(tiles.slice(low, high + 1).map(cellOf));
}

function chooseAlone(tile) {
  anchor = tile;
  select([cellOf(tile)]);
}

function toggle(tile) {
  anchor = tile;
  const cell = cellOf(tile);
  select(selected.has(cell) ? [...selected].filter((other) => other !== cell) : [...selected, cell]);
}

// open: shows a cell on its field.
function click(event, open) {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  if (event.target.matches(".look")) {
    focusInSight(tile);
    chooseAlone(tile);
    open(cellOf(tile));
    return;
  }
  focusInSight(tile); // a tile that moved would not get the second click of a double click
  if (event.shiftKey) selectTo(tile);
  else if (event.ctrlKey || event.metaKey || isPicking) toggle(tile);
  else chooseAlone(tile);
}

// Return the tile to which an arrow key leads; up and down lead to the row above or below.
function neighbour(tile, key) {
  const tiles = visible(tile.parentElement),
    at = tiles.indexOf(tile),
    columns = tiles.filter(({ offsetTop }) => offsetTop === tiles[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return tiles[0];
  if (key === "End") return tiles.at(-1);
  return tiles[at + steps[key]] ?? null;
}

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

function press(event) {
  const tile = event.target.closest?.(".tile");
  if (!tile || event.altKey) return;
  const { key } = event,
    modified = event.ctrlKey || event.metaKey;
  if (MOVES.includes(key)) {
    event.preventDefault();
    const next = neighbour(tile, key);
    if (!next) return;
    focusTile(next);
    if (event.shiftKey) selectTo(next);
    else if (!modified) chooseAlone(next);
  } else if (key === " ") {
    event.preventDefault();
    toggle(tile);
  } else if (key.toLowerCase() === "a" && modified) {
    event.preventDefault();
    select(visible(tile.parentElement).map(cellOf));
  } else if (key === "Escape" && selected.size > 1) {
    event.preventDefault();
    chooseAlone(tile);
  }
}

// Focus and select a cell, and bring it into view.
export function goTo(cell) {
  const { tile } = cell;
  if (tile.hidden) {
    document.querySelector('#filter input[value="all"]').checked = true;
    $("filter-picture").value = "";
    applyFilter();
  }
  focusTile(tile);
  chooseAlone(tile);
}

// Return the visible cells in the order of the page.
export const cellsInOrder = () =>
  [...$("galleries").querySelectorAll(".tile:not([hidden])")].map((tile) => cellOf(tile));

// Do work that moves cells to other galleries; the focus goes on to the next cell of the same gallery.
export function keepingPlace(cells, work) {
  const active = document.activeElement?.closest(".tile"),
    list = active?.parentElement;
  const moved = new Set(cells),
    tiles = list ? visible(list) : [],
    at = tiles.indexOf(active);
  const stays = (tile) => !moved.has(cellOf(tile));
  const next = tiles.slice(at + 1).find(stays) ?? tiles.slice(0, Math.max(at, 0)).findLast(stays);
  work();
  if (!active) return;
  // A cell that got the label of its gallery stays there; then too the next one is wanted.
  if (next) {
    focusTile(next);
    chooseAlone(next);
  } else {
    const [first] = specimen.waiting.filter(({ tile }) => !tile.hidden);
    const target = first?.tile ?? (active.isConnected && !active.hidden ? active : null);
    if (target) {
      focusTile(target);
      chooseAlone(target);
    }
  }
}

// The button that confirms a gallery has gone: go on to the next cell that is not judged, or to what is left to do.
function goOnAfter(list) {
  const cells = cellsInOrder(),
    open = cells.filter(({ reviewed }) => reviewed === null),
    last = cells.findLastIndex(({ tile }) => tile.parentElement === list);
  const next = open.find((cell) => cells.indexOf(cell) > last) ?? open[0];
  if (next) goTo(next);
  else $("report-status").focus();
}

// --- events ---------------------------------------------------------------------------------------------

function show(cells) {
  for (const cell of cells) showCell(cell);
  applyFilter();
  refreshGalleries();
}

// confirm, open: what the buttons of galleries and a double click do.
export function listenToGalleries({ confirm, open }) {
  specimen.addEventListener("added", ({ detail: cells }) => {
    for (const cell of cells) makeTile(cell);
    $("cells").hidden = false;
    document.body.classList.add("has-cells");
    listPictures();
    show(cells);
    drawCrops(cells[0].picture);
  });
  specimen.addEventListener("labelled", ({ detail: cells }) => show(cells));
  specimen.addEventListener("cleared", () => {
    galleries.clear();
    selected.clear();
    anchor = null;
    $("galleries").replaceChildren();
    $("filter-picture").replaceChildren();
    document.querySelector("#filter input").checked = true;
    $("cells").hidden = true;
    document.body.classList.remove("has-cells");
  });
  document.addEventListener("model", () => specimen.cells.length && refreshGalleries());
  $("galleries").addEventListener("click", (event) => {
    if (event.target.matches("button")) {
      const { list } = galleryOf(event.target.closest(".gallery").dataset.place);
      confirm(visible(list).map(cellOf).filter(isConfirmable));
      if (event.target.hidden) goOnAfter(list);
    } else click(event, open);
  });
  $("galleries").addEventListener("dblclick", (event) => {
    const tile = event.target.closest(".tile");
    if (tile && !event.target.matches(".look")) open(cellOf(tile)); // there the first click does
  });
  $("galleries").addEventListener("keydown", press);
  // The focus may come by Tab: then the cell is selected that has it.
  $("galleries").addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (tile?.matches(":focus-visible") && !selection().length) chooseAlone(tile);
  });
  $("pick").addEventListener("click", () => {
    isPicking = !isPicking;
    $("pick").setAttribute("aria-pressed", isPicking);
  });
  $("filter").addEventListener("change", () => {
    applyFilter();
    refreshGalleries();
  });
  $("filter-picture").addEventListener("change", () => {
    applyFilter();
    refreshGalleries();
  });
}
