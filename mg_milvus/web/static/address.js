// The query as an address, so that it can be shared and the back button works.

const FILTER = "where.";

/** Query -> "?…"; defaults are left out. */
export function toAddress(query) {
  const params = new URLSearchParams();
  if (query.id) params.set("id", query.id);
  if (query.codes) params.set("codes", query.codes);
  for (const codes of query.others) params.append("codes", codes);
  for (const id of query.like) params.append("like", id);
  for (const id of query.unlike) params.append("unlike", id);
  if (query.text) params.set("text", query.text);
  if (query.cluster) params.set("cluster", query.cluster);
  if (query.crop) params.set("crop", query.crop.join(","));
  if (query.profile) params.set("profile", query.profile);
  else if (query.weights) {
    params.set("weights", Object.entries(query.weights).map(([name, weight]) => `${name}:${weight}`).join(","));
  }
  if (query.fusion) params.set("fusion", query.fusion);
  if (query.depth) params.set("depth", query.depth);
  for (const [name, value] of Object.entries(query.filters)) params.set(FILTER + name, value);
  const text = params.toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
  return text ? `?${text}` : "./";
}

/** "?…" -> query. Invalid values are ignored: an address may come from anywhere. */
export function fromAddress(search, about) {
  const params = new URLSearchParams(search);
  const crop = params.get("crop")?.split(",").map(Number);
  const filters = {};
  for (const [name, value] of params) if (name.startsWith(FILTER)) filters[name.slice(FILTER.length)] = value;
  const depth = Number(params.get("depth"));
  const id = params.get("id");
  const codes = params.getAll("codes");
  return {
    id,
    codes: id ? null : (codes.shift() ?? null),
    others: codes,
    like: params.getAll("like"),
    unlike: params.getAll("unlike"),
    text: params.get("text") || null,
    cluster: params.get("cluster") || null,
    crop: crop?.length === 4 && crop.every(Number.isInteger) ? crop : null,
    profile: Object.hasOwn(about.profiles, params.get("profile") ?? "") ? params.get("profile") : null,
    weights: readWeights(params.get("weights"), about.bits),
    fusion: ["rank", "score", "chance"].includes(params.get("fusion")) ? params.get("fusion") : null,
    depth: Number.isInteger(depth) && depth > 0 ? depth : null,
    filters,
  };
}

function readWeights(text, bits) {
  if (!text) return null;
  const given = new Map(text.split(",").map((part) => part.split(":")));
  const weights = {};
  for (const name of Object.keys(bits)) {
    const weight = Number(given.get(name) ?? 0);
    weights[name] = Number.isFinite(weight) && weight >= 0 ? weight : 0;
  }
  return weights;
}
