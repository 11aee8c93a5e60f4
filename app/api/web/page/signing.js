// A person signs the differential; a correction later names the report that it replaces.

import { isUnanswered } from "./classify.js";
import { drawn } from "./crops.js";
import { countOf, differentialBody, goal } from "./differential.js";
import { $, dropSettled, element, Failure, leaveControl, listen, plural } from "./dom.js";
import { goToNext } from "./labelling.js";
import { specimen } from "./specimen.js";
import { isSending } from "./work.js";

export const STATUS = {
  preliminary: "Preliminary: not signed",
  final: "Final",
  corrected: "Corrected",
};

const FORMERS = 8; // at most, one in the other, in a request

// Throw Failure while something stands against a report; the message goes when it no longer does.
function refuseWhile(holds, title, detail) {
  if (holds()) throw new Failure(title, detail, {}, holds);
}

// Throw Failure while pictures of the specimen are on their way.
export const checkSent = () =>
  refuseWhile(
    isSending,
    "Pictures are still being sent.",
    "Wait until all are classified, or cancel: a report of some of them would look like one of all.",
  );

// Throw Failure if no report may leave the page now.
export function checkReport() {
  checkSent();
  refuseWhile(
    () => specimen.blind && specimen.waiting.length > 0,
    "Not all cells are labelled.",
    "Label them, or switch blind mode off: a report of some of the cells would look like one of all.",
  );
  refuseWhile(
    () => specimen.signature !== null && !specimen.isSigned,
    "The report changed after it was signed.",
    "Sign the correction first, or undo the change.",
  );
}

// Return the body of a report: signed, or preliminary. Throws Failure.
export function reportBody() {
  checkReport();
  const { signature } = specimen;
  return differentialBody(signature ? signed(signature.reviewer) : {});
}

// Return what a signature adds to the body of POST /differential: the reports that it replaces, each in the next.
function signed(reviewer) {
  const replacing = (former) => former && { replaces: former.fingerprint, former };
  const former = specimen.earlier
    .slice(-FORMERS)
    .reduce((before, { report }) => ({ ...report, ...replacing(before) }), undefined);
  return { reviewer, ...replacing(former) };
}

export function showStatus() {
  const { signature, isSigned } = specimen;
  $("report-status").textContent = !signature
    ? STATUS.preliminary
    : isSigned
      ? `${STATUS[signature.status] ?? signature.status}: signed by ${signature.reviewer}, ${timeOf(signature.at)}`
      : `Changed after ${signature.reviewer} signed it: sign the correction`;
  $("report-status").dataset.status = !signature ? "preliminary" : isSigned ? signature.status : "changed";
  $("sign").textContent = signature ? "Sign the correction" : "Sign";
  $("sign").disabled = Boolean(signature) && isSigned;
}

export const timeOf = (iso) =>
  new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

// Throw Failure if the specimen cannot be signed yet.
function checkComplete() {
  checkSent();
  const waiting = specimen.waiting.length;
  if (waiting) goToNext();
  refuseWhile(
    () => specimen.waiting.length > 0,
    `${plural(waiting, "cell")} ${waiting === 1 ? "waits" : "wait"} for review.`,
    "Give each a label, then sign. The first is selected.",
  );
}

// Return what a person must know before they sign.
function factsOf() {
  const { cells, pictures, agreement } = specimen,
    unseen = cells.filter(({ picture }) => picture.isHidden).length,
    undrawn = cells.filter(({ picture }) => !picture.size).length - unseen,
    unanswered = pictures.filter(isUnanswered).length,
    failed = pictures.filter(({ problem }) => problem).length - unanswered;
  return [
    `${plural(cells.length, "cell")}, of which you judged ${agreement.reviewed}. By signing you answer for all of them.`,
    unseen &&
      `${plural(unseen, "cell")} cannot be shown: this browser does not know the format. You sign them unseen.`,
    undrawn && `${plural(undrawn, "cell")} ${are(undrawn)} not drawn yet.`,
    unanswered &&
      `${plural(unanswered, "picture")} got no answer and ${are(unanswered)} not in the count. Cancel to send again.`,
    failed && `${plural(failed, "picture")} could not be classified and ${are(failed)} not in the count.`,
    cells.length < goal() && `There are fewer cells than the ${goal()} that you set.`,
    specimen.signature && "The report becomes a correction of the one that was signed before.",
  ].filter(Boolean);
}

const are = (count) => (count === 1 ? "is" : "are");

let asked = null; // what the person was asked to sign

const showFacts = () =>
  $("sign-facts").replaceChildren(...factsOf().map((text) => element("li", { textContent: text })));

// Ask for the name of the person who signs, once nothing waits for review.
function askToSign() {
  checkComplete();
  asked = specimen.content;
  showFacts();
  drawn().then(showFacts);
  $("sign-title").textContent = specimen.signature ? "Sign the correction" : "Sign the differential";
  $("reviewer").value ||= specimen.signature?.reviewer ?? "";
  $("ask-signature").returnValue = "";
  $("ask-signature").showModal();
}

async function sign() {
  const reviewer = $("reviewer").value.trim();
  if ($("ask-signature").returnValue !== "sign" || !reviewer) return;
  checkComplete();
  const { content } = specimen;
  if (content !== asked)
    throw new Failure("Cells were added or changed meanwhile.", "Nothing was signed: look at them, and sign again.");
  const answer = await countOf(differentialBody(signed(reviewer)));
  const { fingerprint, status, replaces, counts, changes } = answer;
  specimen.sign({
    ...{ reviewer, content, status, at: new Date().toISOString() },
    report: { fingerprint, status, reviewer, ...(replaces && { replaces }), counts, changes },
  });
  leaveControl("sign", "report-status");
}

export function listenToSigning() {
  listen("sign", "click", askToSign);
  listen("ask-signature", "close", sign);
  for (const type of ["labelled", "added", "signed", "cleared"]) {
    specimen.addEventListener(type, showStatus);
    specimen.addEventListener(type, dropSettled);
  }
  document.addEventListener("worked", dropSettled);
  document.addEventListener("identified", showStatus);
  specimen.addEventListener("cleared", () => {
    $("reviewer").value = "";
  });
  showStatus();
}
