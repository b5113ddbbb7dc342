// Builds the page into static/, or into the folder given: `npm run build`, `node build.mjs DIR`.
// The same sources and the same lock file give the same bytes, which a test compares.

import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? join(here, "static"));

mkdirSync(target, { recursive: true });
for (const old of readdirSync(target)) rmSync(join(target, old));
const built = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.tsx", style: "src/style.css" },
  outdir: target,
  bundle: true,
  splitting: true, // three.js is a file of its own, so that the page stands before it has come
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none", // the licences are in LICENSES.txt
  chunkNames: "[name]-[hash]",
  metafile: true,
});
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(here, "src", name), join(target, name));
writeFileSync(join(target, "LICENSES.txt"), licences());
writeFileSync(join(target, "sources.sha256"), `${digest()}\n`);
for (const [path, { bytes }] of Object.entries(built.metafile.outputs)) console.log(`${bytes}\t${path}`);

// Of all that was read, so that a test without Node sees when the bundle is old.
function digest() {
  const sources = readdirSync(join(here, "src")).sort().map((name) => join(here, "src", name));
  const hash = createHash("sha256");
  for (const file of [...sources, join(here, "build.mjs"), join(here, "package-lock.json")])
    hash.update(`${basename(file)}\0`).update(readFileSync(file)).update("\0");
  return hash.digest("hex");
}

// The licences of all that is bundled, as they ask for.
function licences() {
  const inputs = Object.keys(built.metafile.inputs).map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]);
  return [...new Set(inputs.filter(Boolean))].sort().map((name) => {
    const folder = join(here, "node_modules", name);
    const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    return `${name} ${version}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  }).join("\n----\n\n");
}
