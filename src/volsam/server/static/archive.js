// Several files of this computer as one upload: the slices of a DICOM series.

const BLOCK = 512;

/** Files as a tar archive, which the server takes for the slices of a series. Nothing is read before it is sent. */
export function archived(files, name) {
  const parts = files.flatMap((file, place) => [
    head(`${String(place).padStart(6, "0")}.dcm`, file.size),
    file,
    new Uint8Array((BLOCK - (file.size % BLOCK)) % BLOCK),
  ]);
  return new File([...parts, new Uint8Array(2 * BLOCK)], `${name || "series"}.tar`);
}

function head(name, size) {
  const block = new Uint8Array(BLOCK);
  const write = (text, place) => block.set(new TextEncoder().encode(text), place);
  const octal = (value, digits) => value.toString(8).padStart(digits, "0");
  write(name, 0);
  write("0000644", 100);
  write(`${octal(size, 11)} `, 124);
  write("        ", 148); // stands for the checksum while it is summed up
  write("0", 156);
  write("ustar\u000000", 257);
  write(`${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\u0000 `, 148);
  return block;
}

/** What was dropped: files, those in folders too, and the name of the folder if it is one. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = [...transfer.files]; // gone after the first await
  const folder = entries.length === 1 && entries[0].isDirectory ? entries[0].name : "";
  const found = (await Promise.all(entries.map(filesIn))).flat();
  return { files: found.length || folder ? found : plain, folder };
}

async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((done, fail) => entry.file(done, fail))];
  const reader = entry.createReader();
  const all = [];
  for (;;) {
    // A reader gives a hundred entries at a time, then none.
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    all.push(...some);
  }
  return (await Promise.all(all.map(filesIn))).flat();
}
