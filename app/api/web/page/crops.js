// Pictures of single cells: each picture is decoded once, and its cells are cut out by their frames.

import { element } from "./dom.js";
import { encodePng } from "./png.js";

export const SIDE = 144; // pixels of a crop on the page

let queue = Promise.resolve(); // one picture is decoded at a time: one of 12 megapixels takes 48 MB

// Return a canvas for a cell; `drawCrops` fills it.
export const cropCanvas = () =>
  element("canvas", { width: SIDE, height: SIDE, attributes: { "aria-hidden": "true" } });

// Draw the cells of a picture on their canvases (cell.canvas), and set the picture's size. A picture that this
// browser cannot show, such as a TIFF, is marked as hidden.
export function drawCrops(picture) {
  queue = queue.then(async () => {
    try {
      const bitmap = await createImageBitmap(picture.file);
      picture.size = { width: bitmap.width, height: bitmap.height };
      for (const cell of picture.cells) drawCell(bitmap, cell.prediction.frame, cell.canvas);
      bitmap.close();
    } catch {
      picture.isHidden = true;
      for (const { canvas } of picture.cells) canvas.parentElement?.classList.add("unavailable");
    }
  });
  return queue;
}

// Return a promise of the end of all drawing that was asked for.
export const drawn = () => queue;

// Draw a frame as large as it fits, in the middle.
function drawCell(image, { left, top, width, height }, canvas) {
  const scale = Math.min(canvas.width / width, canvas.height / height),
    [across, down] = [width * scale, height * scale];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(
    image,
    ...[left, top, width, height],
    ...[(canvas.width - across) / 2, (canvas.height - down) / 2, across, down],
  );
}

const ROOM = 1.5; // side of what is cut out ÷ side of the frame: what is around a cell helps to find it again

// Return the frame of a cell with some room around it, as far as no other cell's middle comes into it.
export function withRoom(cell) {
  const { frame } = cell.prediction,
    side = Math.max(frame.width, frame.height),
    [x, y] = middle(frame);
  const distances = cell.picture.cells
    .filter((other) => other !== cell)
    .map(({ prediction }) => middle(prediction.frame))
    .map(([across, down]) => Math.max(Math.abs(across - x), Math.abs(down - y)));
  const half = Math.max(side / 2, Math.min((ROOM * side) / 2, ...distances)),
    [left, top] = [Math.max(x - half, 0), Math.max(y - half, 0)];
  return { left, top, width: x + half - left, height: y + half - top };
}

const middle = ({ left, top, width, height }) => [left + width / 2, top + height / 2];

// Return a part of a picture as a PNG of its own pixels.
export function cutOut(bitmap, { left, top, width, height }) {
  const [x, y] = [Math.floor(left), Math.floor(top)],
    across = Math.max(1, Math.min(Math.ceil(left + width), bitmap.width) - x),
    down = Math.max(1, Math.min(Math.ceil(top + height), bitmap.height) - y);
  const context = new OffscreenCanvas(across, down).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, -x, -y);
  return encodePng(context.getImageData(0, 0, across, down));
}
