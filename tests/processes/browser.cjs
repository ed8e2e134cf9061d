// A Chromium page for tests in another language: each line of standard input is JSON with an `id`
// and `js`, the body of an async function of `page`; each line of output the `value` or `error` of
// one. What a page calls as `call(name, arguments)` goes out as a line with `call`, and the line
// with that id and `value` comes back as its answer.
const path = require("node:path");
const readline = require("node:readline");

// npm exec puts the folder of the package's commands first on PATH, and nothing on require's.
const [commands] = process.env.PATH.split(path.delimiter);
const { chromium } = require(path.join(commands, "..", "playwright-core"));

const write = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const AsyncFunction = (async () => {}).constructor;

async function main() {
  const [executablePath] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ deviceScaleFactor: 2 });
  page.setDefaultTimeout(30000);
  page.on("console", (message) => console.error(`page: ${message.text()}`));
  page.on("pageerror", (error) => console.error(`page: ${error}`));
  const calls = new Map();
  let lastCall = 0;
  await page.exposeFunction("call", (name, parameters) => new Promise((answer) => {
    const id = `call-${++lastCall}`;
    calls.set(id, answer);
    write({ id, call: name, parameters });
  }));
  write({ ready: browser.version() });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { id, js, value } = JSON.parse(line);
    if (calls.has(id)) {
      calls.get(id)(value);
      calls.delete(id);
      continue;
    }
    new AsyncFunction("page", js)(page).then(
      (result) => write({ id, value: result ?? null }),
      (error) => write({ id, error: String(error.stack ?? error) }),
    );
  }
  await browser.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
