// What a page remembers until it is saved, by a name. In IndexedDB, whose transactions a reload sees: of a file's
// localStorage Chromium 156 hands a reloaded page what was there before, often and for seconds.
const opened = new Promise((done, fail) => {
  const request = indexedDB.open("craft_trl", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("votes");
  request.onsuccess = () => done(request.result);
  request.onerror = () => fail(request.error);
});
async function transact(mode, act) {
  document.body.dataset.pending = 1 + Number(document.body.dataset.pending ?? 0);
  try {
    const database = await opened;
    return await new Promise((done, fail) => {
      const transaction = database.transaction("votes", mode);
      const request = act(transaction.objectStore("votes"));
      transaction.oncomplete = () => done(request.result);
      transaction.onabort = () => fail(transaction.error);
    });
  } catch { // a browser that lets a file remember nothing: it is lost with the page
  } finally {
    document.body.dataset.pending -= 1;
  }
}
const recall = (name) => transact("readonly", (store) => store.get(name));
const remember = (name, value) => transact("readwrite", (store) => store.put(value, name));
