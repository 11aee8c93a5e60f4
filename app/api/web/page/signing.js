// A person signs the differential; a correction later names the report that it replaces.

import { countOf, differentialBody, goal } from "./differential.js";
import { $, element, Failure, listen, plural } from "./dom.js";
import { goToNext } from "./labelling.js";
import { specimen } from "./specimen.js";

const STATUS = {
  preliminary: "Preliminary: not signed",
  final: "Final",
  corrected: "Corrected",
};

// Throw Failure if no report may leave the page now.
export function checkReport() {
  if (specimen.blind && specimen.waiting.length)
    throw new Failure(
      "Not all cells are labelled.",
      "Label them, or switch blind mode off: a report of some of the cells would look like one of all.",
    );
  const { signature } = specimen;
  if (signature && !specimen.isSigned)
    throw new Failure(
      "The report changed after it was signed.",
      "Sign the correction first, or undo the change.",
    );
}

// Return the body of a report: signed, or preliminary. Throws Failure.
export function reportBody() {
  checkReport();
  const { signature } = specimen;
  return differentialBody(signature ? signed(signature) : {});
}

// former: the signed report that this one replaces, as `former` of POST /differential; undefined for the first.
const signed = ({ reviewer, former }) => ({
  reviewer,
  ...(former && { replaces: former.fingerprint, former }),
});

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

// Ask for the name of the person who signs, once nothing waits for review.
function askToSign() {
  const waiting = specimen.waiting.length;
  if (waiting) {
    goToNext();
    throw new Failure(
      `${plural(waiting, "cell")} ${waiting === 1 ? "waits" : "wait"} for review.`,
      "Give each a label, then sign. The first is selected.",
    );
  }
  const { reviewed } = specimen.agreement,
    all = specimen.cells.length,
    few = all < goal() ? `There are fewer cells than the ${goal()} that you set.` : "";
  $("sign-facts").replaceChildren(
    ...[
      `${plural(all, "cell")}, of which you judged ${reviewed}. By signing you answer for all of them.`,
      ...(few ? [few] : []),
      ...(specimen.signature ? ["The report becomes a correction of the one that was signed before."] : []),
    ].map((text) => element("li", { textContent: text })),
  );
  $("sign-title").textContent = specimen.signature ? "Sign the correction" : "Sign the differential";
  $("reviewer").value ||= specimen.signature?.reviewer ?? "";
  $("ask-signature").returnValue = "";
  $("ask-signature").showModal();
}

async function sign() {
  const reviewer = $("reviewer").value.trim();
  if ($("ask-signature").returnValue !== "sign" || !reviewer) return;
  const { content, signature } = specimen,
    former = signature?.report;
  const answer = await countOf(differentialBody(signed({ reviewer, former })));
  const { fingerprint, status, counts, changes } = answer;
  specimen.sign({
    ...{ reviewer, former, content, status, at: new Date().toISOString() },
    report: { fingerprint, status, reviewer, counts, changes },
  });
}

export function listenToSigning() {
  listen("sign", "click", askToSign);
  listen("ask-signature", "close", sign);
  for (const type of ["labelled", "added", "signed", "cleared"]) specimen.addEventListener(type, showStatus);
  document.addEventListener("identified", showStatus);
  specimen.addEventListener("cleared", () => {
    $("reviewer").value = "";
  });
  showStatus();
}
