// ZIP archives, read in the browser: the directory, and one entry at a time (APPNOTE 4.3).

const END = 0x06054b50; // end of the central directory
const ZIP64_END = 0x06064b50;
const ZIP64_LOCATOR = 0x07064b50;
const ENTRY = 0x02014b50;
const LONGEST_END = 22 + 65_535; // with its comment
const ZIP64 = 56 + 20; // its end of the directory and the locator of that
const ENCRYPTED = 0x1 | 0x40 | 0x2000; // flags
const UTF8 = 0x800; // flag
const [STORED, DEFLATED] = [0, 8];
// The upper half of code page 437, in which names are unless a flag says UTF-8.
const CP437 =
  "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0";

// An archive or an entry cannot be read; the message says why.
export class Unreadable extends Error {}

// Return the entries that are files. Throws Unreadable.
export async function readDirectory(file) {
  const { size, start, shift } = await findDirectory(file);
  const view = new DataView(await file.slice(start + shift, start + shift + size).arrayBuffer()),
    entries = [];
  let at = 0;
  while (at + 46 <= view.byteLength && view.getUint32(at, true) === ENTRY) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    if (at + 46 + name + extra + comment > view.byteLength) break;
    const entry = readEntry(view, at, name, extra, shift);
    if (!entry.name.endsWith("/")) entries.push(entry);
    at += 46 + name + extra + comment;
  }
  if (at !== size) throw new Unreadable("the directory of the ZIP file is damaged");
  return entries;
}

async function findDirectory(file) {
  const from = Math.max(file.size - LONGEST_END - ZIP64, 0);
  const tail = new DataView(await file.slice(from).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Unreadable("this is no ZIP file, or its end is missing");
  let [size, start] = [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  const long = end - ZIP64;
  if (
    long >= 0 &&
    tail.getUint32(long, true) === ZIP64_END &&
    tail.getUint32(end - 20, true) === ZIP64_LOCATOR
  ) {
    [size, start] = [40, 48].map((offset) => Number(tail.getBigUint64(long + offset, true)));
    end = long;
  }
  // The directory lies before its end. Bytes before the archive, as in one that unpacks itself, shift all.
  const shift = from + end - size - start;
  if (shift < 0) throw new Unreadable("the directory of the ZIP file is damaged");
  return { size, start, shift };
}

function readEntry(view, at, nameLength, extraLength, shift) {
  const [flags, method] = [8, 10].map((offset) => view.getUint16(at + offset, true));
  const [crc, packed, size, offset] = [16, 20, 24, 42].map((place) => view.getUint32(at + place, true));
  const entry = { name: "", method, crc, packed, size, offset, encrypted: Boolean(flags & ENCRYPTED) };
  for (let extra = at + 46 + nameLength, end = extra + extraLength; extra + 4 <= end; ) {
    const [kind, length] = [view.getUint16(extra, true), view.getUint16(extra + 2, true)];
    if (kind === 1) readLongFields(view, extra + 4, Math.min(extra + 4 + length, end), entry);
    extra += 4 + length;
  }
  entry.offset += shift;
  const bytes = new Uint8Array(view.buffer, view.byteOffset + at + 46, nameLength);
  entry.name = decodeName(bytes, flags).replaceAll("\\", "/");
  return entry;
}

// ZIP64: a field has its value here, in this order, if it is all ones in the entry.
function readLongFields(view, at, end, entry) {
  for (const field of ["size", "packed", "offset"]) {
    if (entry[field] !== 0xffffffff || at + 8 > end) continue;
    entry[field] = Number(view.getBigUint64(at, true));
    at += 8;
  }
}

// Names in UTF-8 are read as such, though some systems do not set the flag.
function decodeName(bytes, flags) {
  try {
    return new TextDecoder("utf-8", { fatal: !(flags & UTF8) }).decode(bytes);
  } catch {
    return Array.from(bytes, (byte) => (byte < 128 ? String.fromCharCode(byte) : CP437[byte - 128])).join("");
  }
}

// Return the unpacked data of an entry as a Blob. most: its bytes at most. Throws Unreadable.
export async function extract(file, entry, most) {
  const { method, packed, size, offset, encrypted } = entry;
  if (encrypted) throw new Unreadable("the archive entry is encrypted");
  if (method !== STORED && method !== DEFLATED)
    throw new Unreadable("the archive entry is compressed by a method other than store and deflate");
  if (size > most) throw new Unreadable(`the archive entry has more than ${most / 2 ** 20} MiB`);
  const head = new DataView(await file.slice(offset, offset + 30).arrayBuffer());
  if (head.byteLength < 30) throw new Unreadable("the archive entry is missing");
  const start = offset + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const body = file.slice(start, start + packed);
  const chunks = method === STORED ? [new Uint8Array(await body.arrayBuffer())] : await inflate(body, size);
  if (checksum(chunks) !== entry.crc || chunks.reduce((sum, { length }) => sum + length, 0) !== size)
    throw new Unreadable("the archive entry is corrupt");
  return new Blob(chunks);
}

async function inflate(body, size) {
  const reader = body.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader(),
    chunks = [];
  let total = 0;
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      total += next.value.length;
      if (total > size) break;
      chunks.push(next.value);
    }
  } catch {
    throw new Unreadable("the archive entry is corrupt");
  }
  if (total > size) {
    await reader.cancel();
    throw new Unreadable("the archive entry unpacks to more bytes than it declares");
  }
  return chunks;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

// Return the CRC-32 of all chunks.
export function checksum(chunks) {
  let value = 0xffffffff;
  for (const chunk of chunks) for (const byte of chunk) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
