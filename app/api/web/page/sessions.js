// The review as a session: a file that is opened again later, or kept in this browser if the user says so.
// Both hold the same: `session.json` (labels, identifiers, answers of the model) and the pictures.

import { updateDifferential } from "./differential.js";
import { $, Failure, listen, MIB, plural, save, setStatus } from "./dom.js";
import { fileName } from "./naming.js";
import { NOT_A_CELL, specimen, UNIDENTIFIED } from "./specimen.js";
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
      const reviewed = cells.map(({ reviewed: label }) => label);
      pictures.push({ name, mode, archive, flaw, outcome, reviewed, file: await fileOf(index, picture) });
    }
    const { specimen: id, accession } = data.ids;
    check(typeof id === "string" && typeof accession === "string" && Array.isArray(data.signatures));
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

async function store(mode) {
  const asked = indexedDB.open(DATABASE, 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
  const database = await promised(asked);
  const transaction = database.transaction(STORE, mode);
  transaction.addEventListener("complete", () => database.close());
  return transaction.objectStore(STORE);
}

const readKept = async () => promised((await store("readonly")).get(KEY));

async function forget() {
  clearTimeout(writing);
  isMine = false;
  await promised((await store("readwrite")).delete(KEY));
  await showKept();
}

async function keepNow() {
  if (!$("keep").checked || !specimen.pictures.length) return;
  const { data, files } = snapshot();
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
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

function keepSoon() {
  clearTimeout(writing);
  if ($("keep").checked) writing = setTimeout(() => keepNow().catch(showKeepProblem), WRITE_AFTER_MS);
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
      `it is deleted after ${MOST_HOURS} hours.`
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
}

export function listenToSessions() {
  $("keep").checked = localStorage.getItem(SWITCH) === "on";
  listen("save-session", "click", saveSession);
  listen("open-kept", "click", openKept);
  listen("forget", "click", forget);
  listen("keep", "change", async () => {
    if ($("keep").checked) {
      localStorage.setItem(SWITCH, "on");
      keepSoon();
    } else {
      localStorage.removeItem(SWITCH);
      await forget();
    }
  });
  for (const type of ["labelled", "pictures", "signed"]) specimen.addEventListener(type, keepSoon);
  document.addEventListener("identified", keepSoon);
  specimen.addEventListener("cleared", () => {
    clearTimeout(writing);
  });
  showKept().catch(showKeepProblem);
  setInterval(() => showKept().catch(showKeepProblem), 60_000);
}

// Delete what this browser keeps of the specimen that is cleared; another session stays.
export async function forgetKept() {
  await (isMine ? forget() : showKept()).catch(showKeepProblem);
}
