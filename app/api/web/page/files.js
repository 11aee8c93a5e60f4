// Which files of a folder or ZIP are images, by the rule of app/archives/image_files.py, and of which class.

import { extract, readDirectory, Unreadable } from "./zip.js";

export const IMAGE_SUFFIXES =
  ".jpg .jpeg .jpe .jfif .jif .pjpeg .pjp .png .apng .webp .tif .tiff .bmp .dib .gif .dcm .dicom " +
  ".jp2 .j2k .jpx .jpf .jxl .heic .heif .avif .svs .ndpi .scn .mrxs .czi .nd2 .lif .lsm .oib .oif .vsi";
export const ARCHIVE_SUFFIXES =
  ".zip .tar .gz .tgz .bz2 .tbz .tbz2 .tb2 .xz .txz .lzma .tlz .lz .lz4 .zst .tzst .z .taz .7z .rar";
export const SYSTEM_NAMES = [
  ...["__macosx", "icon\r", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db"],
  ...["ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler", "recycled"],
  ...["system volume information", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@syno"],
  ...["#recycle", "#snapshot", "~snapshot", "lost+found"],
];
const [IMAGES, ARCHIVES, SYSTEM] = [
  new Set(IMAGE_SUFFIXES.split(" ")),
  new Set(ARCHIVE_SUFFIXES.split(" ")),
  new Set(SYSTEM_NAMES),
];
const IMAGE = "an image";
const HEAD = 132; // bytes that tell what a file is
// How files of the image formats begin: alternatives of [offset, bytes].
const SIGNATURES = [
  [[0, "\xff\xd8\xff"]],
  [[0, "\x89PNG\r\n\x1a\n"]],
  [[0, "RIFF"], [8, "WEBP"]],
  ...["II*\0", "MM\0*", "II+\0", "MM\0+", "GIF87a", "GIF89a"].map((mark) => [[0, mark]]),
  [[128, "DICM"]],
  ...["\x02\0\0\0UL", "\x08\0\x05\0CS", "\x08\0\x08\0CS"].map((mark) => [[0, mark]]), // DICOM, no preamble
  // Formats that Leuko does not read: as images, they are refused by name.
  ...["\0\0\0\x0cjP  \r\n\x87\n", "\xff\x4f\xff\x51", "\0\0\0\x0cJXL \r\n\x87\n"].map((mark) => [[0, mark]]),
  ...["heic", "heix", "mif1", "avif"].map((brand) => [[4, `ftyp${brand}`]]),
];
const BMP_HEADERS = [12, 40, 52, 56, 64, 108, 124]; // sizes; a text may begin with BM too
const MOST_NAMED = 3; // files that a line about files names
const MAX_UNPACKED = 2 ** 31; // bytes of an archive's images, which the browser holds

export const isArchive = ({ file }) => /\.zip$/i.test(file.name) || /zip/.test(file.type);

// Return what a file is by its name, null if its content decides. All but images are left out.
export function kindByName(path) {
  const parts = path.split("/");
  const bySystem = (part) =>
    (part.startsWith(".") && part !== "..") || part.startsWith("~$") || SYSTEM.has(part.toLowerCase());
  if (parts.some(bySystem)) return "hidden or left by a system";
  const suffix = parts.at(-1).match(/(?<=.)\.[^.]+$/)?.[0].toLowerCase();
  if (IMAGES.has(suffix)) return IMAGE;
  return ARCHIVES.has(suffix) ? "an archive" : null;
}

export async function beginsAsImage(blob) {
  const head = new Uint8Array(await blob.slice(0, HEAD).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (text.startsWith("BM"))
    return head.length >= 18 && BMP_HEADERS.includes(new DataView(head.buffer).getUint32(14, true));
  return SIGNATURES.some((marks) => marks.every(([offset, mark]) => text.startsWith(mark, offset)));
}

// Return the class of the nearest parent folder named after one, whatever its case, blanks or plural s.
export function classOf(path, labels) {
  for (const part of path.split("/").slice(0, -1).reverse()) {
    const key = part.normalize("NFC").trim().toLowerCase();
    const label = [key, key.replace(/s$/, ""), `${key}s`].find((name) => labels.includes(name));
    if (label) return label;
  }
  return null;
}

// Return the lines that say which files were left out, one for each reason. leftOut: [{ name, why }].
export function leftOutLines(leftOut) {
  return [...new Set(leftOut.map(({ why }) => why))].map((reason) => {
    const names = leftOut.filter(({ why }) => why === reason).map(({ name }) => name);
    const shown = names.slice(0, MOST_NAMED).join(", ") + (names.length > MOST_NAMED ? ", …" : "");
    return `${names.length} ${names.length === 1 ? "file was" : "files were"} left out (${reason}): ${shown}`;
  });
}

// Sort the files of folders into images, by name, and what is left out. items, images: [{ name, file }].
export async function selectImages(items) {
  const images = [],
    leftOut = [];
  for (const item of [...items].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    let kind = kindByName(item.name);
    try {
      kind ??= (await beginsAsImage(item.file)) ? IMAGE : "not an image";
    } catch {
      kind = "cannot be read";
    }
    if (kind === IMAGE) images.push(item);
    else leftOut.push({ name: item.name, why: kind });
  }
  return { images, leftOut };
}

// Return the entries of a ZIP that may be images, and what is left out. Throws Unreadable.
export async function listArchive(file) {
  const candidates = [],
    leftOut = [];
  for (const entry of await readDirectory(file)) {
    const kind = kindByName(entry.name);
    if (kind === null || kind === IMAGE) candidates.push({ ...entry, certain: kind === IMAGE });
    else leftOut.push({ name: entry.name, why: kind });
  }
  return { candidates, leftOut };
}

// Yield an item for each candidate: its file, the flaw that prevents unpacking, or why it is left out.
export async function* unpack(archive, candidates, most) {
  if (candidates.reduce((sum, { size }) => sum + Math.min(size, most), 0) > MAX_UNPACKED)
    throw new Unreadable("it unpacks to more than 2 GiB: unpack it and choose the folder");
  for (const entry of candidates) {
    const { name } = entry;
    try {
      const blob = await extract(archive.file, entry, most);
      if (entry.certain || (await beginsAsImage(blob)))
        yield { name, archive: archive.name, file: new File([blob], name.split("/").at(-1)) };
      else yield { name, why: "not an image" };
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      yield { name, archive: archive.name, flaw: error.message };
    }
  }
}

// Return the items of a drop or paste, with those inside folders: [{ name, file, inFolder }]; failed is
// [{ name, why }].
export async function droppedItems(transfer) {
  // What the browser offers is gone after the first await.
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map(toEntry);
  const items = [],
    failed = [];
  for (const entry of entries) {
    if (entry instanceof File) items.push({ name: entry.name, file: entry, inFolder: false });
    else for await (const found of filesBelow(entry)) (found.file ? items : failed).push(found);
  }
  return { items, failed };
}

// Files that are given on their own have no need of an entry, which those from a clipboard do not have.
const toEntry = (item) => {
  const entry = item.webkitGetAsEntry?.();
  return entry?.isDirectory ? entry : item.getAsFile();
};

async function* filesBelow(entry) {
  const name = entry.fullPath.replace(/^\//, "");
  try {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      yield { name, file, inFolder: name.includes("/") };
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // One call returns at most a part of the folder; an empty list is the end.
      const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!children.length) return;
      for (const child of children) yield* filesBelow(child);
    }
  } catch {
    yield { name, why: "cannot be read" };
  }
}
