// Pictures of single cells: each picture is decoded once, and its cells are cut out by their frames.

import { element } from "./dom.js";

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

// Return a frame of a picture as a PNG of its own pixels, or null if the browser cannot show the picture.
export async function cutOut(bitmap, { left, top, width, height }) {
  const [x, y] = [Math.floor(left), Math.floor(top)];
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.min(Math.ceil(left + width), bitmap.width) - x),
    Math.max(1, Math.min(Math.ceil(top + height), bitmap.height) - y),
  );
  canvas.getContext("2d").drawImage(bitmap, -x, -y);
  return canvas.convertToBlob({ type: "image/png" });
}
