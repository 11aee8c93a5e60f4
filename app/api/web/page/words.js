// What the page says of cells and pictures, in words.

import { percent } from "./dom.js";
import { bestTwo, isChanged, isClose, labelOf, nameOf, specimen } from "./specimen.js";

const REASONS = {
  no_cell: "no cell was found in the picture",
  several_cells: "there are several leukocytes in the picture",
  cut_off: "the cell is cut off by the edge of the picture",
  blurred: "the picture is blurred",
  exposure: "the picture is too dark, too bright or without contrast",
  low_confidence: "the model is not sure",
  out_of_distribution: "the image is unlike those that the model was trained on",
};
const OF_FIELDS = { several_cells: "another cell is so near that both may be one" };
const OF_MODEL = ["low_confidence", "out_of_distribution"];
const ADVICE = {
  no_cell: "Move to a place with white blood cells, or use a stain that colours nuclei violet",
  several_cells: "Choose “every cell of a picture”, or cut out one cell",
  cut_off: "Take a picture that shows the whole cell",
  blurred: "Focus and take it again",
  exposure: "Set light and exposure, and take it again",
};

const ADVICE_ON_FIELDS = { several_cells: "If two finds are one cell, call one of them “not a cell”" };

// Return a reason for review in words. mode: whether the picture is a field or one cell.
export const inWords = (reason, mode) => (mode === "all" && OF_FIELDS[reason]) || (REASONS[reason] ?? reason);
export const advice = (reasons, mode) =>
  reasons.map((reason) => (mode === "all" && ADVICE_ON_FIELDS[reason]) || ADVICE[reason]).filter(Boolean);

const short = (share) => percent(share, 0);

// Return why a person must look at a cell, in words; what the model thinks of it only where that may be shown.
export function reasonsOf(cell) {
  const isShown = isOpen(cell),
    { review_reasons: all } = cell.prediction,
    { mode } = cell.picture,
    reasons = all
      .filter((reason) => isShown || !OF_MODEL.includes(reason))
      .map((reason) => inWords(reason, mode));
  if (isClose(cell) && isShown) {
    const [[first, high], [second, low]] = bestTwo(cell);
    reasons.push(`two classes are close: ${first} ${short(high)}, ${second} ${short(low)}`);
  }
  return reasons;
}

// Return the name of a cell: its picture, and its number from 1 if the picture may have several.
export const titleOf = ({ picture, number }) =>
  picture.mode === "all" ? `${picture.name}, cell ${number + 1}` : picture.name;

// Return whether the model's label of a cell may be shown.
export const isOpen = (cell) => !specimen.blind || cell.reviewed !== null;

// Return what a screen reader says of a cell.
export function describe(cell) {
  const title = titleOf(cell),
    { label, confidence } = cell.prediction;
  if (!isOpen(cell)) return `${title}: not labelled yet`;
  const model = `${label} ${short(confidence)}`;
  if (isChanged(cell)) return `${title}: ${nameOf(labelOf(cell))} by you, ${model} by the model`;
  if (cell.reviewed !== null) return `${title}: ${model}, confirmed by you`;
  const reasons = reasonsOf(cell);
  return `${title}: ${model}${reasons.length ? `; to review: ${reasons.join("; ")}` : ""}`;
}
