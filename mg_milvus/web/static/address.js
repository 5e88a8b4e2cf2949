// The query as an address, so that it can be shared, and found again with the back button.

const FILTER = "where.";

/** Query -> "?…"; what is as by default is left out. */
export function toAddress(query) {
  const search = new URLSearchParams();
  if (query.id) search.set("id", query.id);
  if (query.codes) search.set("codes", query.codes);
  if (query.crop) search.set("crop", query.crop.join(","));
  if (query.profile) search.set("profile", query.profile);
  else if (query.weights) {
    search.set("weights", Object.entries(query.weights).map(([name, weight]) => `${name}:${weight}`).join(","));
  }
  if (query.fusion) search.set("fusion", query.fusion);
  if (query.depth) search.set("depth", query.depth);
  for (const [name, value] of Object.entries(query.filters)) search.set(FILTER + name, value);
  const text = search.toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
  return text ? `?${text}` : "/";
}

/** "?…" -> query. What makes no sense is passed over: an address may come from anywhere. */
export function fromAddress(search, about) {
  const query = new URLSearchParams(search);
  const crop = query.get("crop")?.split(",").map(Number);
  const filters = {};
  for (const [name, value] of query) if (name.startsWith(FILTER)) filters[name.slice(FILTER.length)] = value;
  const depth = Number(query.get("depth"));
  return {
    id: query.get("id"),
    codes: query.get("id") ? null : query.get("codes"),
    crop: crop?.length === 4 && crop.every(Number.isInteger) ? crop : null,
    profile: Object.hasOwn(about.profiles, query.get("profile") ?? "") ? query.get("profile") : null,
    weights: readWeights(query.get("weights"), about.bits),
    fusion: ["rank", "score"].includes(query.get("fusion")) ? query.get("fusion") : null,
    depth: Number.isInteger(depth) && depth > 0 ? depth : null,
    filters,
  };
}

function readWeights(text, bits) {
  if (!text) return null;
  const named = new Map(text.split(",").map((part) => part.split(":")));
  const weights = {};
  for (const name of Object.keys(bits)) {
    const weight = Number(named.get(name) ?? 0);
    weights[name] = Number.isFinite(weight) && weight >= 0 ? weight : 0;
  }
  return weights;
}
