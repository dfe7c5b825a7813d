// Reads diagrams with Mermaid's own parser: `node parse.mjs MODULE FILE…` prints the type of each and fails at the first
// that is none.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [module, ...files] = process.argv.slice(2);
const { default: mermaid } = await import(pathToFileURL(module));
for (const file of files) {
  const { diagramType } = await mermaid.parse(await readFile(file, "utf8"));
  console.log(diagramType);
}
