// How a class looks: a hue and a pattern, beside its name. Eight hues with four patterns make 32 marks.

const KNOWN = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]; // with colours of their own
const HUES = 8;

// Return the attributes (data-…) that page.css draws for one of a model's labels.
export function markOf(label, labels) {
  if (KNOWN.includes(label)) return { class: label };
  const rank = labels.filter((name) => !KNOWN.includes(name)).indexOf(label);
  return { hue: rank % HUES, pattern: Math.floor(rank / HUES) };
}
