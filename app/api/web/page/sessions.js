// The review as a session: a file that is opened again later, or kept in this browser if the user says so.
// Both hold the same: `session.json` (labels, identifiers, answers of the model) and the pictures.

import { UNANSWERED } from "./classify.js";
import { updateDifferential } from "./differential.js";
import { $, Failure, leaveControl, listen, MIB, plural, save, setStatus } from "./dom.js";
import { describeModel } from "./model.js";
import { fileName } from "./naming.js";
import { nameOf, NOT_A_CELL, specimen, UNIDENTIFIED } from "./specimen.js";
import { extract, readDirectory } from "./zip.js";
import { pack } from "./zip_writer.js";

const FORMAT = "leuko-session"; // with a version: session.json of another is refused
const VERSION = 1;
const LIST = "session.json";
const MAX_LIST = 64 * MIB; // bytes of session.json
const MAX_PICTURE = 2 ** 31; // bytes of a picture in a session

// --- to and from data -----------------------------------------------------------------------------------

// Return the session as data without the pictures' bytes, and these.
function snapshot() {
  const { pictures, ids, signatures, blind } = specimen;
  const described = pictures.map(({ name, mode, archive, flaw, cells, problem, empty, file, order }) => ({
    ...{ name, mode, archive, flaw, problem, empty },
    file: file ? `pictures/${order}-${file.name.replaceAll("/", "_")}` : null,
    model: cells[0]?.model ?? null,
    cells: cells.map(({ prediction, reviewed }) => ({ prediction, reviewed })),
  }));
  const data = { format: FORMAT, version: VERSION, saved_at: new Date().toISOString() };
  Object.assign(data, { ids, signatures, blind, goal: Number($("goal").value), pictures: described });
  return { data, files: pictures.filter(({ file }) => file).map(({ order, file }) => ({ order, file })) };
}

// Show a session. fileOf: returns the file of a picture, given its place. Throws Failure.
async function restore(data, fileOf) {
  if (data?.format !== FORMAT || data.version !== VERSION)
    throw new Failure("This is no session of this page.", "It may be of another version of Leuko.");
  const pictures = [];
  try {
    for (const [index, picture] of data.pictures.entries()) {
      const { name, mode, archive, flaw, problem, empty, model, cells } = picture;
      check(typeof name === "string" && ["one", "all"].includes(mode));
      for (const { prediction, reviewed } of cells) checkCell(prediction, reviewed);
      const outcome = { cells: cells.map(({ prediction }) => prediction), problem, empty, model };
      // It was still on its way when the session was saved.
      if (!cells.length && !problem && !empty) outcome.problem = UNANSWERED;
      const reviewed = cells.map(({ reviewed: label }) => label),
        file = await fileOf(index, picture);
      check(file !== null || typeof flaw === "string");
      pictures.push({ name, mode, archive, flaw, outcome, reviewed, file });
    }
    const { specimen: id, accession } = data.ids;
    check(typeof id === "string" && typeof accession === "string");
    for (const { reviewer, report } of data.signatures)
      check(typeof reviewer === "string" && Object.values(report.counts).every(Number.isInteger));
    await checkLabels(data.pictures);
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure("The session is damaged.", String(error.message));
  }
  specimen.restore({ pictures, ids: data.ids, signatures: data.signatures, blind: Boolean(data.blind) });
  $("goal").value = Number(data.goal) || 100;
  $("blind").checked = specimen.blind;
  $("specimen-id").value = specimen.ids.specimen;
  $("accession-id").value = specimen.ids.accession;
  await updateDifferential();
  document.dispatchEvent(new Event("restored"));
  setStatus(
    `Session of ${data.saved_at.slice(0, 16).replace("T", " ")} UTC opened: ${plural(specimen.cells.length, "cell")}.`,
  );
}

function check(holds) {
  if (!holds) throw new Failure("The session is damaged.", "A value is not what this page writes.");
}

// Throw Failure if the model that answers lacks a label of the session, which it then cannot count.
async function checkLabels(pictures) {
  const served = await describeModel().catch(() => null); // without an answer, nothing is counted yet
  if (!served) return;
  const cells = pictures.flatMap(({ cells: some }) => some),
    known = [...served.labels, UNIDENTIFIED, NOT_A_CELL];
  const given = cells.flatMap(({ prediction, reviewed }) => [prediction.label, reviewed ?? UNIDENTIFIED]),
    lacking = [...new Set(given)].filter((label) => !known.includes(label));
  if (!lacking.length) return;
  const { name, version } = pictures.find(({ model }) => model)?.model ?? {};
  throw new Failure(
    "The session is of another model.",
    `Its cells were classified by ${name} ${version}. The model that answers, ${served.name} ${served.version}, does ` +
      `not know ${lacking.map(nameOf).join(", ")}. Open the session where that model is served.`,
  );
}

function checkCell(prediction, reviewed) {
  const { label, confidence, probabilities, frame, review_reasons: reasons } = prediction;
  const sides = [frame.left, frame.top, frame.width, frame.height];
  check(typeof label === "string" && Number.isFinite(confidence) && Array.isArray(reasons));
  check(Object.values(probabilities).every(Number.isFinite) && sides.every(Number.isFinite));
  const known = [...Object.keys(probabilities), UNIDENTIFIED, NOT_A_CELL];
  check(reviewed === null || known.includes(reviewed));
}

// --- a file ---------------------------------------------------------------------------------------------

async function saveSession() {
  const { version } = specimen,
    { data, files } = snapshot();
  const blob = await pack([
    { name: LIST, blob: new Blob([JSON.stringify(data)]) },
    ...files.map(({ order, file }) => ({ name: data.pictures[order].file, blob: file })),
  ]);
  save(fileName("session.zip"), blob);
  specimen.keep(version);
}

const entryOf = async (file, name) => (await readDirectory(file)).find((entry) => entry.name === name);

// Return whether a ZIP is a session.
export async function isSession(file) {
  try {
    return Boolean(await entryOf(file, LIST));
  } catch {
    return false; // whoever reads it next says what is wrong with it
  }
}

export async function openSession(file) {
  if (specimen.isUnsaved && !window.confirm("The results are not saved. Open the session all the same?"))
    return;
  const entries = new Map((await readDirectory(file)).map((entry) => [entry.name, entry]));
  let data;
  try {
    data = JSON.parse(await (await extract(file, entries.get(LIST), MAX_LIST)).text());
  } catch (error) {
    throw new Failure("The session is damaged.", error.message);
  }
  await restore(data, async (_, { file: path, name }) => {
    if (path === null) return null;
    const entry = entries.get(path);
    if (!entry) throw new Failure("The session is damaged.", `${name} is missing.`);
    return new File([await extract(file, entry, MAX_PICTURE)], path.replace(/^pictures\/\d+-/, ""));
  });
}

// --- this browser ---------------------------------------------------------------------------------------

const [DATABASE, STORE, KEY] = ["leuko", "session", "kept"];
const MOST_HOURS = 24; // a kept session that is older is deleted
const MOST_KEPT = 512 * MIB; // bytes of its pictures
const WRITE_AFTER_MS = 500;
const SWITCH = "leuko-keep"; // in localStorage: the user wants it

let writing = 0; // the timer of the next write
let isMine = false; // the session that is kept is the one on the page

const promised = (asked) =>
  new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });

let database = null; // stays open: a page that is left waits for nothing

async function store(mode) {
  if (!database) {
    const asked = indexedDB.open(DATABASE, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
    database = await promised(asked);
    database.onclose = () => {
      database = null;
    };
  }
  return database.transaction(STORE, mode).objectStore(STORE);
}

const readKept = async () => promised((await store("readonly")).get(KEY));

async function forget() {
  stopWriting();
  isMine = false;
  await promised((await store("readwrite")).delete(KEY));
  await showKept();
}

const sizeOf = (files) => files.reduce((sum, { file }) => sum + file.size, 0);

async function keepNow() {
  if (!$("keep").checked || !specimen.pictures.length) return;
  const { data, files } = snapshot();
  const size = sizeOf(files);
  if (size > MOST_KEPT) {
    $("kept-text").textContent =
      `Not kept: the pictures have ${Math.ceil(size / MIB)} MiB, the limit is ${MOST_KEPT / MIB}. Save a file.`;
    return;
  }
  if (!isMine && (await readKept())) {
    await showKept();
    $("kept-text").textContent += " What is on the page is not kept: open or delete that session first.";
    return;
  }
  await promised((await store("readwrite")).put({ at: Date.now(), data, files }, KEY));
  isMine = true;
  await showKept();
}

function stopWriting() {
  clearTimeout(writing);
  writing = 0;
}

function keepSoon() {
  stopWriting();
  if (!$("keep").checked) return;
  writing = setTimeout(() => {
    writing = 0;
    keepNow().catch(showKeepProblem);
  }, WRITE_AFTER_MS);
}

// Write at once what waits to be written: the page is left. Nothing here may wait.
function keepLast() {
  if (!writing || !isMine || !database) return;
  stopWriting();
  const { data, files } = snapshot();
  if (sizeOf(files) > MOST_KEPT) return;
  const transaction = database.transaction(STORE, "readwrite");
  transaction.objectStore(STORE).put({ at: Date.now(), data, files }, KEY);
  transaction.commit();
}

const showKeepProblem = (error) => {
  $("kept-text").textContent = `Not kept: ${error.message}`;
};

const ageOf = (at) => {
  const minutes = Math.floor((Date.now() - at) / 60_000);
  if (minutes < 1) return "less than a minute";
  return minutes < 90 ? plural(minutes, "minute") : plural(Math.round(minutes / 60), "hour");
};

// Say what is kept and how old it is; delete what is too old.
async function showKept() {
  const kept = await readKept();
  const isOld = kept && Date.now() - kept.at > MOST_HOURS * 3_600_000;
  if (isOld) await promised((await store("readwrite")).delete(KEY));
  const some = kept && !isOld;
  $("kept").hidden = !some;
  $("open-kept").hidden = !some || specimen.pictures.length > 0;
  $("kept-text").textContent = some
    ? `A session of ${plural(countCells(kept.data), "cell")} is kept in this browser, saved ${ageOf(kept.at)} ago; ` +
      `once it is ${MOST_HOURS} hours old, this page deletes it when it is next open. On a computer that others use, ` +
      `delete it before you leave.`
    : "";
}

const countCells = ({ pictures }) => pictures.reduce((sum, { cells }) => sum + cells.length, 0);

async function openKept() {
  const kept = await readKept();
  if (!kept) throw new Failure("Nothing is kept in this browser.", "");
  const files = new Map(kept.files.map(({ order, file }) => [order, file]));
  await restore(kept.data, (index) => files.get(index) ?? null);
  isMine = true;
  await showKept();
  leaveControl("open-kept", "specimen-id");
}

// Delete what is kept, and keep nothing from now on.
async function switchOff() {
  $("keep").checked = false;
  localStorage.removeItem(SWITCH);
  await forget();
  leaveControl("forget", "keep");
}

export function listenToSessions() {
  $("keep").checked = localStorage.getItem(SWITCH) === "on";
  listen("save-session", "click", saveSession);
  listen("open-kept", "click", openKept);
  listen("forget", "click", switchOff);
  listen("keep", "change", async () => {
    if ($("keep").checked) {
      localStorage.setItem(SWITCH, "on");
      keepSoon();
    } else {
      await switchOff();
    }
  });
  for (const type of ["labelled", "pictures", "signed"]) specimen.addEventListener(type, keepSoon);
  document.addEventListener("identified", keepSoon);
  window.addEventListener("pagehide", keepLast);
  document.addEventListener("visibilitychange", () => document.hidden && keepLast());
  specimen.addEventListener("cleared", stopWriting);
  showKept().catch(showKeepProblem);
  setInterval(() => showKept().catch(showKeepProblem), 60_000);
}

// Delete what this browser keeps of the specimen that is cleared; another session stays.
export async function forgetKept() {
  await (isMine ? forget() : showKept()).catch(showKeepProblem);
}
