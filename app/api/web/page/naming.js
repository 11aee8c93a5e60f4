// Names of the files that leave the page.

import { specimen } from "./specimen.js";

// Return a text as part of a name that every file system takes.
export const safe = (text) =>
  text
    .normalize("NFC")
    .replace(/[^\p{L}\p{N}._-]+/gu, "_")
    .replace(/^[._]+/, "")
    .slice(0, 64);

// Return the name of a file: leuko, the specimen and accession number if they are given, and what it is.
export const fileName = (what) =>
  [...["leuko", specimen.ids.specimen, specimen.ids.accession].map(safe).filter(Boolean), what].join("-");
