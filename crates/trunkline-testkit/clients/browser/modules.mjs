// Loads packages as npm has them: the newer client comes as CommonJS modules, which pages do not know.

const loaded = new Map();

/** A package by its name, from the directory that the test serves below `/modules/`. */
export async function load(name) {
  return evaluate(await fetched(await entry(name)));
}

async function text(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.text();
}

/** The path of the module that stands for a package. */
async function entry(name) {
  const described = JSON.parse(await text(`/modules/${name}/package.json`));
  const exported = described.exports?.["."] ?? described.main;
  const file = typeof exported === "string" ? exported : exported.require ?? exported.default;
  return new URL(file, `${location.origin}/modules/${name}/`).pathname;
}

/** Fetches a module and all that it asks for. */
async function fetched(path) {
  if (loaded.has(path)) return loaded.get(path);
  const module = { path, source: "", needs: new Map(), exports: undefined };
  loaded.set(path, module);
  module.source = await text(path);
  for (const [, name] of module.source.matchAll(/\brequire\("([^"]+)"\)/g)) {
    const relative = name.startsWith(".");
    const target = relative ? new URL(name.endsWith(".js") ? name : `${name}.js`, location.origin + path).pathname : await entry(name);
    module.needs.set(name, await fetched(target));
  }
  return module;
}

function evaluate(module) {
  if (module.exports === undefined) {
    const unit = { exports: {} };
    // Before it runs: modules may ask for each other.
    module.exports = unit.exports;
    const require = (name) => evaluate(module.needs.get(name));
    new Function("require", "module", "exports", `${module.source}\n//# sourceURL=${module.path}`)(require, unit, unit.exports);
    module.exports = unit.exports;
  }
  return module.exports;
}
