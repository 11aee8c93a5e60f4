// ZIP archives, written in the browser: entries are stored as they are, since pictures are compressed (APPNOTE 4.3).

import { Failure } from "./dom.js";
import { checksum } from "./zip.js";

const [LOCAL, ENTRY, END] = [0x04034b50, 0x02014b50, 0x06054b50];
const VERSION = 20; // needed to extract
const UTF8 = 0x800; // flag: names are in UTF-8
const MOST_ENTRIES = 65_535;
const MOST_BYTES = 2 ** 32 - 1;

// Return a ZIP as a Blob. files: [{ name, blob }], names with / between folders. Throws Failure if it needs ZIP64.
export async function pack(files, at = new Date()) {
  const parts = [],
    directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer()),
      encoded = new TextEncoder().encode(name);
    const common = [VERSION, UTF8, 0, ...dosTime(at)];
    const sizes = [checksum([bytes]), bytes.length, bytes.length];
    const local = record(LOCAL, common, sizes, [encoded.length, 0]);
    directory.push(
      record(ENTRY, [VERSION, ...common], sizes, [encoded.length, 0, 0, 0, 0], [0, offset]),
      encoded,
    );
    parts.push(local, encoded, blob);
    offset += local.length + encoded.length + bytes.length;
  }
  const size = directory.reduce((sum, { length }) => sum + length, 0);
  if (files.length > MOST_ENTRIES || offset + size > MOST_BYTES)
    throw new Failure("The file would be too large.", "A ZIP of this page holds 65,535 files and 4 GiB.");
  const end = record(END, [0, 0, files.length, files.length], [size, offset], [0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// Return a record: its mark, then groups of numbers, of 2 and of 4 bytes in turn.
function record(mark, ...groups) {
  const sizes = groups.flatMap((group, index) => group.map((value) => [value, index % 2 ? 4 : 2])),
    bytes = new Uint8Array(4 + sizes.reduce((sum, [, size]) => sum + size, 0)),
    view = new DataView(bytes.buffer);
  view.setUint32(0, mark, true);
  let at = 4;
  for (const [value, size] of sizes) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return bytes;
}

// Return time and date in MS-DOS's format.
const dosTime = (at) => [
  (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1),
  ((at.getFullYear() - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate(),
];
