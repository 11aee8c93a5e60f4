// PNG files, written in the browser (RFC 2083). A canvas encodes its own only while the page is idle, which a busy
// one is not for a second a picture.

import { checksum } from "./zip.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const [RGB, UP] = [2, 2]; // colour type; filter: each byte less the one above it

// Return the colours of an ImageData as a PNG, without its transparency.
export async function encodePng({ width, height, data }) {
  const line = 1 + 3 * width,
    rows = new Uint8Array(height * line);
  for (let y = 0; y < height; y++) {
    rows[y * line] = UP;
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        const at = 4 * (y * width + x) + channel;
        rows[y * line + 1 + 3 * x + channel] = data[at] - (y ? data[at - 4 * width] : 0);
      }
    }
  }
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint8(8, 8); // bits
  head.setUint8(9, RGB);
  return new Blob(
    [
      new Uint8Array(SIGNATURE),
      ...chunk("IHDR", new Uint8Array(head.buffer)),
      ...chunk("IDAT", new Uint8Array(await new Response(deflated).arrayBuffer())),
      ...chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}

function chunk(name, body) {
  const number = (value) => {
    const view = new DataView(new ArrayBuffer(4));
    view.setUint32(0, value);
    return view.buffer;
  };
  const type = new TextEncoder().encode(name);
  return [number(body.length), type, body, number(checksum([type, body]))];
}
