// Loads GGUF files that loratool wrote in llama.cpp (through node-llama-cpp) and lets each generate tokens.
// Usage: node check.mjs FOLDER-OF-NODE_MODULES NAME=MODEL[+ADAPTER]... NAME==NAME...
// An argument A==B demands that two of the named runs generated the same tokens.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, ...args] = process.argv.slice(2);
const require = createRequire(pathToFileURL(modules + "/"));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });

async function generate(spec) {
	const [modelPath, adapter] = spec.split("+");
	const model = await llama.loadModel({ modelPath });
	const context = await model.createContext({
		contextSize: 64,
		...(adapter ? { lora: { adapters: [{ filePath: adapter, scale: 1 }] } } : {}),
	});
	const tokens = [];
	for await (const token of context.getSequence().evaluate(model.tokenize("func Add(a, b int) int {"), { temperature: 0 })) {
		tokens.push(token);
		if (tokens.length === 16) break;
	}
	await context.dispose();
	await model.dispose();
	return tokens.join(" ");
}

let failed = 0;
const results = {};
for (const arg of args) {
	const same = arg.match(/^(.+)==(.+)$/);
	if (same) {
		const ok = results[same[1]] !== undefined && results[same[1]] === results[same[2]];
		console.log(`${ok ? "equal    " : "DIFFERENT"} ${same[1]} and ${same[2]}`);
		failed += ok ? 0 : 1;
		continue;
	}
	const [name, spec] = [arg.slice(0, arg.indexOf("=")), arg.slice(arg.indexOf("=") + 1)];
	try {
		results[name] = await generate(spec);
		console.log(`loads     ${name}: ${results[name]}`);
	} catch (error) {
		console.log(`FAILED    ${name}: ${error.message}`);
		failed++;
	}
}
console.log(failed ? `${failed} failed` : "llama.cpp loads and runs everything");
process.exit(failed ? 1 : 0);
