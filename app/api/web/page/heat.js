// A class-activation map as a coloured picture.

import { element } from "./dom.js";

const SIDE = 224; // pixels of the picture
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

// Return a canvas with a map.
export function drawMap({ shape: [rows, columns], values }) {
  const small = new OffscreenCanvas(columns, rows),
    pixels = new ImageData(columns, rows);
  values.flat().forEach((value, index) => pixels.data.set([...colour(value), 255], 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = element("canvas", {
    width: SIDE,
    height: SIDE,
    attributes: { role: "img", "aria-label": "Activation map" },
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, SIDE, SIDE);
  return canvas;
}
