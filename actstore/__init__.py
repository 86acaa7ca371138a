"""The on-disk activation store: written once, read many times.

Rows are vectors, one for each token at one *site*; a store holds several sites, aligned by row.
Start at `actstore.writer.ActWriter` to write, at `actstore.reader.ActStore` to read and at
`actstore.batches.Batches` to train; the bytes are specified in FORMAT.md. The package stands alone:
it knows numpy, zarr's format and numcodecs, and nothing of models.

Ten lines write labelled vectors and read them back shuffled:

    spec = StoreSpec.of(widths={"image": 64}, ctx_len=1, dtype="float32")
    with ActWriter.create_or_resume(Path("images.actstore"), spec, n_rows=len(x)) as writer:
        for i in range(writer.n_rows_committed, len(x), 4096):
            rows = slice(i, i + 4096)
            writer.append({"image": x[rows, None, :]}, tokens=labels[rows, None])
        writer.finish()
    store = ActStore.open(Path("images.actstore"))
    for batch in Batches(store=store, sites=("image",), batch_size=256, seed=0).start_at(0):
        step(batch["image"])
"""
