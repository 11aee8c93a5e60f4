// Giving labels: by key, by button, by drag; undone; said aloud.

import { $, element, listen, plural } from "./dom.js";
import { cellsInOrder, goTo, keepingPlace, select, selection } from "./galleries.js";
import { markOf } from "./marks.js";
import { labels } from "./model.js";
import {
  HIDDEN,
  isChanged,
  labelOf,
  nameOf,
  NOT_A_CELL,
  specimen,
  TO_REVIEW,
  UNIDENTIFIED,
} from "./specimen.js";
import { titleOf } from "./words.js";

const KEYED = 9; // labels that have a key of their own
const CELL_TYPE = "application/x-leuko-cells"; // of what is dragged

let areKeysOn = true;

// Return the label of a key, undefined if it has none.
export function labelOfKey(key) {
  if (key === "u") return UNIDENTIFIED;
  if (key === "x") return NOT_A_CELL;
  return /^[1-9]$/.test(key) ? labels()[key - 1] : undefined;
}

// --- what was done, aloud -------------------------------------------------------------------------------

export function say(text) {
  // A text that is the same as before would not be said again. What is outside an open dialog is not said.
  for (const id of ["done", "viewer-done"])
    $(id).textContent = $(id).textContent === text ? `${text}\u00a0` : text;
  $("undo").disabled = !specimen.canUndo;
}

const remaining = () => {
  const count = specimen.waiting.length;
  return count ? ` ${count} ${specimen.blind ? "to label" : "to review"}.` : " None waits for review.";
};

const namesOf = (cells) => (cells.length === 1 ? titleOf(cells[0]) : plural(cells.length, "cell"));

// --- labels ---------------------------------------------------------------------------------------------

// Give a label to cells; the focus goes on to the next cell.
export function give(cells, label) {
  if (!cells.length) return say("Select a cell first.");
  let changed;
  keepingPlace(cells, () => {
    changed = specimen.label(cells, label);
  });
  const [only] = cells.length === 1 ? cells : [];
  const model = only && isChanged(only) ? ` (${only.prediction.label} by the model)` : "";
  const done = changed.length ? `${namesOf(cells)}: ${nameOf(label)}${model}.` : "Nothing changed.";
  return say(done + remaining());
}

export function confirm(cells) {
  if (specimen.blind && cells.some(({ reviewed }) => reviewed === null))
    return say("In blind mode, give a label of your own.");
  let changed;
  keepingPlace(cells, () => {
    changed = specimen.confirm(cells);
  });
  const done = changed.length ? `${namesOf(changed)} confirmed.` : "Nothing changed.";
  return say(done + remaining());
}

// work: `specimen.undo` or `redo`, which returns the changed cells.
function takeBack(work, word) {
  const cells = work();
  if (!cells.length) return say(`Nothing to ${word}.`);
  select(cells);
  goTo(cells[0]);
  select(cells);
  const now = cells.length === 1 ? ` It is ${nameOfNow(cells[0])}.` : "";
  return say(`${word === "undo" ? "Undone" : "Done again"}: ${namesOf(cells)}.${now}`);
}

const nameOfNow = (cell) => {
  const place = specimen.placeOf(cell);
  return [TO_REVIEW, HIDDEN].includes(place) ? place : nameOf(labelOf(cell));
};

export const undo = () => takeBack(() => specimen.undo(), "undo");
const redo = () => takeBack(() => specimen.redo(), "redo");

// Go to the next cell that waits for a person, after those that are selected.
export function goToNext() {
  const cells = cellsInOrder(),
    at = cells.indexOf(selection()[0]);
  const waits = (cell) => specimen.isWaiting(cell);
  const next = cells.slice(at + 1).find(waits) ?? cells.find(waits) ?? specimen.waiting[0];
  if (next) goTo(next);
  else say("No cell waits for review.");
  return next;
}

// --- buttons --------------------------------------------------------------------------------------------

// Return a button for each label, with its key. pick: called with the label.
export function labelButtons(pick) {
  const all = [
    ...labels().map((label, index) => [label, index < KEYED ? String(index + 1) : ""]),
    [UNIDENTIFIED, "u"],
    [NOT_A_CELL, "x"],
  ];
  return all.map(([label, key]) => {
    const button = element(
      "button",
      {
        type: "button",
        className: "label",
        dataset: labels().includes(label) ? markOf(label, labels()) : {},
      },
      ...(key ? [element("kbd", { textContent: key })] : []),
      nameOf(label),
    );
    button.value = label;
    button.addEventListener("click", () => pick(label));
    return button;
  });
}

function fillPalette() {
  const buttons = labelButtons((label) => give(selection(), label));
  $("labels").replaceChildren(...buttons);
  for (const button of buttons) acceptDrop(button, () => button.value);
  roveToolbar();
}

// The palette is one tab stop, with arrow keys inside.
function roveToolbar() {
  const buttons = () => [...$("palette").querySelectorAll("button:not([disabled])")];
  const stop = (chosen) => {
    for (const button of buttons()) button.tabIndex = button === chosen ? 0 : -1;
  };
  stop(buttons()[0]);
  $("palette").onfocusin = (event) => stop(event.target);
  $("palette").onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = buttons();
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  };
}

// --- drag -----------------------------------------------------------------------------------------------

// labelFor: returns the label that a drop on a node gives, null for none.
function acceptDrop(node, labelFor) {
  for (const kind of ["dragenter", "dragover"]) {
    node.addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes(CELL_TYPE) || labelFor(event) === null) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "move";
    });
  }
  node.addEventListener("drop", (event) => {
    const label = event.dataTransfer.types.includes(CELL_TYPE) ? labelFor(event) : null;
    if (label === null) return;
    event.preventDefault();
    give(selection(), label);
  });
}

function labelOfGallery(event) {
  const place = event.target.closest(".gallery")?.dataset.place;
  return place === undefined || [TO_REVIEW, HIDDEN].includes(place) ? null : place;
}

function listenToDrag() {
  const list = $("galleries");
  list.addEventListener("dragstart", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    if (tile.getAttribute("aria-selected") !== "true") tile.click();
    event.dataTransfer.setData(CELL_TYPE, "cells");
    event.dataTransfer.effectAllowed = "move";
    document.body.classList.add("moving");
  });
  list.addEventListener("dragend", () => document.body.classList.remove("moving"));
  acceptDrop(list, labelOfGallery);
}

// --- keys -----------------------------------------------------------------------------------------------

const isWriting = ({ target }) =>
  target.matches?.("input:not([type=radio], [type=checkbox]), select, textarea");

// Do what a key says to cells; return whether it means anything.
export function pressOn(cells, event) {
  if (!areKeysOn || event.ctrlKey || event.metaKey || event.altKey) return false;
  const label = labelOfKey(event.key);
  if (label !== undefined) give(cells, label);
  else if (event.key === "c") confirm(cells);
  else return false;
  event.preventDefault();
  return true;
}

// open: shows a cell on its field.
function listenToKeys(open) {
  $("galleries").addEventListener("keydown", (event) => {
    if (pressOn(selection(), event)) return;
    const [cell] = selection();
    if (event.key === "Enter" && cell && event.target.closest(".tile")) {
      event.preventDefault();
      open(cell);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || isWriting(event)) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      if (!specimen.cells.length) return;
      event.preventDefault();
      if (event.shiftKey) redo();
      else undo();
    }
    if (!areKeysOn || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "n" && specimen.cells.length) {
      event.preventDefault();
      goToNext();
    } else if (event.key === "?") {
      event.preventDefault();
      $("help").showModal();
    }
  });
}

// open: shows a cell on its field.
export function listenToLabelling(open) {
  fillPalette();
  document.addEventListener("model", fillPalette);
  listenToDrag();
  listenToKeys(open);
  listen("undo", "click", undo);
  listen("next", "click", goToNext);
  listen("confirm", "click", () => confirm(selection()));
  listen("show-field", "click", () => (selection()[0] ? open(selection()[0]) : say("Select a cell first.")));
  listen("show-help", "click", () => $("help").showModal());
  listen("keys-on", "change", (event) => {
    areKeysOn = event.target.checked;
  });
  listen("blind", "change", (event) => {
    specimen.setBlind(event.target.checked);
    say(
      event.target.checked
        ? "Blind mode: the model’s label is hidden until you give your own."
        : "Blind mode is off.",
    );
  });
  specimen.addEventListener("cleared", () => {
    for (const id of ["done", "viewer-done"]) $(id).textContent = "";
    $("undo").disabled = true;
  });
}
