// Reads file names from standard input; walks each file's tree, takes every record's CID as text and its value as
// JSON, and answers with a line: records, CPU seconds and wall seconds. It verifies nothing.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const { fromUint8Array } = await import(pathToFileURL(process.argv[2]));

function read(paths) {
	let records = 0;
	let size = 0;
	for (const path of paths) {
		for (const entry of fromUint8Array(readFileSync(path))) {
			size += entry.cid.$link.length + entry.collection.length + entry.rkey.length;
			size += JSON.stringify(entry.record).length;
			records += 1;
		}
	}
	return [records, size];
}

for await (const line of createInterface({ input: process.stdin })) {
	const cpu = process.cpuUsage();
	const start = process.hrtime.bigint();
	const [records, size] = read(JSON.parse(line));
	const used = process.cpuUsage(cpu);
	const wall = Number(process.hrtime.bigint() - start) / 1e9;
	console.log(JSON.stringify({ records, size, cpu: (used.user + used.system) / 1e6, wall }));
}
