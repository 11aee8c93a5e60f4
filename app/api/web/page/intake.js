// Files that the user gives, by dialog, drop or paste: which are pictures of the specimen, and what a ZIP is for.

import { classify } from "./classify.js";
import { $, Failure, MIB, setStatus, showMessage, showProblem, showProgress } from "./dom.js";
import { evaluate } from "./evaluation.js";
import {
  classOf,
  droppedItems,
  isArchive,
  leftOutLines,
  listArchive,
  selectImages,
  unpack,
} from "./files.js";
import { describeModel, labels, model } from "./model.js";
import { isSession, openSession } from "./sessions.js";
import { enqueue, supervise } from "./work.js";
import { Unreadable } from "./zip.js";

const MAX_PICTURES = 10_000; // of one archive

// items: [{ name, file, inFolder }]; failed: what could not be read, [{ name, why }].
export async function process({ items, failed }) {
  if (!items.length && !failed.length) return;
  $("problems").replaceChildren();
  const evaluations = [];
  await supervise(async (signal) => {
    const given = items.filter(({ inFolder }) => !inFolder);
    const folders = await selectImages(items.filter(({ inFolder }) => inFolder));
    const cells = [...given.filter((item) => !isArchive(item)), ...folders.images];
    showLeftOut([...folders.leftOut, ...failed]);
    if (folders.images.some(({ name }) => classOf(name, labels())))
      showMessage(
        "note",
        "Folders named after classes are counted as one specimen.",
        "To evaluate the model, drop them in a ZIP.",
      );
    for (const archive of given.filter(isArchive)) {
      try {
        if (await isSession(archive.file)) {
          await openSession(archive.file);
          continue;
        }
        const use = await chooseUse(archive);
        if (use.purpose === "evaluation") evaluations.push(archive);
        else if (use.purpose === "cells") cells.push(...(await unpackCells(archive, use, signal)));
        else setStatus(`${archive.name} was not used.`);
      } catch (error) {
        if (signal.aborted) throw error;
        showProblem(error); // what was given with it is used all the same
      }
    }
    if (cells.length) await classify(cells, document.querySelector("#mode input:checked").value, signal);
  });
  if (evaluations.length > 1)
    showProblem(
      new Failure(
        "Only one archive at a time is evaluated.",
        `${evaluations[0].name} is; drop the others one after the other.`,
      ),
    );
  if (evaluations.length) await supervise((signal) => evaluate(evaluations[0].file, signal), false);
}

function showLeftOut(leftOut) {
  for (const line of leftOutLines(leftOut)) showMessage("note", line);
}

// Look into a ZIP and return its purpose, "cells" or "evaluation", or "" if the user gives none; for cells also
// the entries to unpack and what is left out.
async function chooseUse(archive) {
  let listing;
  try {
    listing = await listArchive(archive.file);
  } catch (error) {
    if (error instanceof Unreadable) return { purpose: "evaluation" }; // the service says what is wrong
    throw error;
  }
  const { labels } = await describeModel(),
    images = listing.candidates.filter(({ name, certain }) => certain || classOf(name, labels)),
    classes = images.map(({ name }) => classOf(name, labels)),
    folders = new Set(images.map(({ name }) => name.slice(0, name.lastIndexOf("/") + 1)));
  if (classes.some(Boolean)) return { purpose: await askForPurpose(archive, classes), ...listing };
  if (folders.size > 1)
    showMessage(
      "note",
      `The images of ${archive.name} are counted as one specimen.`,
      `None of its folders is named after a class (${labels.join(", ")}).`,
    );
  return { purpose: "cells", ...listing };
}

// Ask what to do with a ZIP that has class folders. classes: of its files, null for those outside.
function askForPurpose({ name }, classes) {
  const counts = labels()
    .map((label) => [label, classes.filter((one) => one === label).length])
    .filter(([, count]) => count);
  const outside = classes.filter((label) => label === null).length;
  $("ask-purpose-name").textContent = name;
  $("ask-purpose-why").textContent =
    `It has folders named after classes: ${counts.map(([label, count]) => `${label} (${count})`).join(", ")}.` +
    (outside ? ` Outside of them: ${outside}. An evaluation needs every image in a class folder.` : "");
  const dialog = $("ask-purpose");
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}

// Return the images of a ZIP; those that cannot be unpacked have a flaw.
async function unpackCells(archive, { candidates, leftOut }, signal) {
  if (candidates.length > MAX_PICTURES)
    throw new Failure("Too many images for one specimen.", `${archive.name} has over ${MAX_PICTURES} files.`);
  const cells = [];
  let done = 0;
  try {
    for await (const item of unpack(archive, candidates, model().limits.max_image_mib * MIB)) {
      signal.throwIfAborted();
      if (item.why) leftOut.push(item);
      else cells.push(item);
      showProgress(`Unpacking ${archive.name}`, ++done, candidates.length);
    }
  } catch (error) {
    if (error instanceof Unreadable) throw new Failure(`${archive.name} cannot be unpacked.`, error.message);
    throw error;
  }
  showLeftOut(leftOut);
  if (!cells.length) showProblem(new Failure(`${archive.name} holds no images.`, ""));
  return cells;
}

// --- events ---------------------------------------------------------------------------------------------

const holdsFiles = ({ types }) => types.includes("Files");

// transfer: of a drop or paste. It is read at once, and used when its turn comes.
function receive(transfer) {
  if (!transfer.items.length) return;
  const received = droppedItems(transfer);
  enqueue(async () => process(await received));
}

export function listenToFiles() {
  for (const id of ["files", "folder"]) {
    $(id).addEventListener("change", (event) => {
      const items = [...event.target.files].map((file) => ({
        name: file.webkitRelativePath || file.name,
        file,
        inFolder: Boolean(file.webkitRelativePath),
      }));
      event.target.value = "";
      enqueue(() => process({ items, failed: [] }));
    });
  }
  if (!("webkitdirectory" in HTMLInputElement.prototype)) $("folder").parentElement.hidden = true;
  document.addEventListener("paste", (event) => receive(event.clipboardData));
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (!holdsFiles(event.dataTransfer)) return;
      event.preventDefault();
      document.body.classList.add("dragging");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (!holdsFiles(event.dataTransfer)) return;
    event.preventDefault();
    receive(event.dataTransfer);
  });
}
