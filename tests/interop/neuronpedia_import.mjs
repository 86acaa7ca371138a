// Runs the importer of Neuronpedia itself (apps/webapp/lib/db/import.ts) on files of an export.
//
//     POSTGRES_URL_NON_POOLING=... node neuronpedia_import.mjs IMPORT.ts TABLE FILE.jsonl.gz...
//
// Only what it would load around itself (Prisma, the S3 client) is left out: `importJsonlString`,
// which it calls for features and activations, uses neither.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { gunzipSync } from 'node:zlib';

const [source, table, ...files] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const esbuild = require('esbuild');
const around = {
  name: 'around',
  setup(build) {
    build.onResolve({ filter: /^@\// }, ({ path }) => ({ path, namespace: 'around' }));
    build.onLoad({ filter: /.*/, namespace: 'around' }, () => ({
      contents: "export const prisma = {}, CONFIG_BASE_PATH = ''; export const downloadFileJsonlParsedLines = () => [];",
    }));
  },
};
const built = await esbuild.build({
  entryPoints: [source], bundle: true, write: false, platform: 'node', format: 'cjs',
  external: ['pg', 'pg-native'], plugins: [around],
});
writeFileSync('import.cjs', built.outputFiles[0].text);
const { importJsonlString } = require('./import.cjs');
for (const file of files) await importJsonlString(table, gunzipSync(readFileSync(file)).toString());
