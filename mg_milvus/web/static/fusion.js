// The ranking of mg_milvus/search/fusion.py, so that moving a slider needs no request. Any change there belongs here too;
// a test compares the two.

/** Ranks from 1, nearest first; equal distances share their mean rank. */
export function sharedRanks(distances) {
  const ordered = Float64Array.from(distances).sort();
  const rank = new Map();
  for (let first = 0; first < ordered.length; ) {
    let last = first;
    while (last < ordered.length && ordered[last] === ordered[first]) last += 1;
    rank.set(ordered[first], (first + last + 1) / 2);
    first = last;
  }
  return distances.map((distance) => rank.get(distance));
}

// As numpy rounds: to the nearest, halves to even.
function rounded(value) {
  const scaled = value * 1e12;
  const below = Math.floor(scaled);
  const half = scaled - below;
  return half === 0.5 ? below + (below % 2) : Math.round(scaled);
}

/**
 * Rank the candidates that a granularity with a weight retrieved.
 *
 * candidates: [{id, distances: {name: bits}, ranked_by: {name: bits}, chance: {name: share}, retrieved_by: [name]}]
 * bits: {name: code length}; weights: {name: number}; method: "rank", "score" or "chance".
 * lead: the profile auto: candidates that stand out, on the granularity `row.lead`, come first.
 * Returns [{row, rank, score, ranks}], best first; empty when no weight is above 0.
 */
export function fuse(candidates, { bits, weights, method, rrfK, lead = false }) {
  const used = Object.keys(weights).filter((name) => weights[name] > 0).sort();
  const leads = (row) => lead && method === "rank" && Boolean(row.lead);
  const rows = candidates.filter((row) => leads(row) || row.retrieved_by.some((name) => used.includes(name)));
  const ranks = {};
  for (const name of Object.keys(bits)) ranks[name] = sharedRanks(rows.map((row) => compared(row, method)[name]));
  const entries = rows.map((row, place) => {
    let nearness = 0;
    let score = 0;
    for (const name of used) {
      nearness += weights[name] * (1 - compared(row, method)[name] / bits[name]);
      score += method === "chance" ? -weights[name] * Math.log10(row.chance[name]) : weights[name] / (rrfK + ranks[name][place]);
    }
    if (method === "score") score = nearness;
    if (leads(row)) score += leadingScore(row, ranks[row.lead]?.[place], weights, rrfK);
    const own = Object.fromEntries(Object.keys(bits).map((name) => [name, ranks[name][place]]));
    return { row, score, ranks: own, keys: [rounded(score), rounded(nearness)] };
  });
  entries.sort(
    (a, b) =>
      b.keys[0] - a.keys[0] || b.keys[1] - a.keys[1] || (a.row.id < b.row.id ? -1 : a.row.id > b.row.id ? 1 : 0),
  );
  return entries.map(({ row, score, ranks: own }, place) => ({ row, rank: place + 1, score, ranks: own }));
}

/** The distances that rank a candidate; chance is that of the bits that differ. */
const compared = (row, method) => (method === "chance" ? row.distances : row.ranked_by);

/** What a candidate that stands out has beyond the others. On the regions only the nearest can, and its rank is 1. */
function leadingScore(row, rank, weights, rrfK) {
  const sum = Object.values(weights).reduce((all, weight) => all + weight, 0);
  return sum / (rrfK + (rank ?? 1));
}

/** What each granularity adds to the score of one entry: {name: number}. */
export function contributions(entry, { bits, weights, method, rrfK, lead = false }) {
  const share = (name) =>
    method === "score"
      ? weights[name] * (1 - entry.row.ranked_by[name] / bits[name])
      : method === "chance"
      ? -weights[name] * Math.log10(entry.row.chance[name])
      : weights[name] / (rrfK + entry.ranks[name]);
  const parts = Object.fromEntries(Object.keys(bits).map((name) => [name, weights[name] > 0 ? share(name) : 0]));
  const { row, ranks } = entry;
  if (lead && method === "rank" && row.lead) {
    parts[row.lead] = (parts[row.lead] ?? 0) + leadingScore(row, ranks[row.lead], weights, rrfK);
  }
  return parts;
}
