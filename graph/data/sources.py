# SPDX-License-Identifier: Apache-2.0
"""Where the graphs come from, and what their files must contain.

The public files are MATLAB matrices, text and NumPy arrays; here are the same links in one small
form (`graph.data.npz`), so no file has an address of its own: ABOUT names what it was made from.
"""

# Path under the data root -> (sha256 of the file, "" as there is no public file of these bytes).
FILES = {
    f"graph/{name}.npz": (sha256, "")
    for name, sha256 in {
        "BlogCatalog": "7bfefa8d54d394e5ade7b9b9648d4fe31eb0470506ba9aa0df4603dde06ca8f4",
        "PB": "64ff5fba299df218e1ded8fca3ed6fbf8f47c4ac948842e4c0ca8671c9706bf8",
        "PB_splits": "567596379ca6687030e390a942d637b1180c74d11df62ccaba4399ed81701575",
        "Power": "12f89f2ee049533131facdc76c77729876ff3f25b20662840c0fef959896b624",
        "Power_splits": "d0625ed3a64bbe7039bceacc8191a3c2f0dd8bb24a2b354c19cd37f41c29d580",
        "Router": "433969f547c22151cee41428bf9fb30fe6be7478eb324c31c60620d4afaaffc5",
        "Router_splits": "b73f24d5e8d15b987416acf380f9b921203bd9be178f3439b1bdb6f5e98c3395",
        "USAir": "ba1cf36615aabf777057438fa0b9551e48605d11a65634a7471acd93be7973b4",
        "USAir_splits": "756c09af1e87deabccfcbde785c4e20c3b0e9fe4b4df09a4ac3d04bd79659571",
        "Yeast": "753a17779101df2f6654b90e095b430d6b0f3610bd157e40ceb25aba495404b5",
        "Yeast_splits": "fc71529a40a3774b4fb68ae6fcbd259fd0ca560268a72ad2b29cd5e4e912ba2d",
        "arxiv": "eb4d0f44a330bff58a0bc8765d72a6ede489b29c6f8a7abc08a4028dbf92c01f",
        "citeseer": "af5d6d42c53dbbb085df1ba56ad14a357dbcf8c226ed02659788277976f7b103",
        "cora": "9367401bc9c86b5000cdc158b12cdd9b2883098ecf462a0d041ab04dbc6b8c12",
        "pubmed": "8038cfc6241035a6ed21b1849cf64c7eaebd98b37b59891b11e75277a0d76ccd",
    }.items()
}
ABOUT = {
    "graph": (
        "15 files of links, re-encoded as .npz. USAir, PB, Yeast, Power, Router, BlogCatalog, "
        "arxiv (ca-AstroPh): github.com/muhanzhang/SEAL MATLAB/data/*.mat; *_splits (ten fixed "
        "90/10 splits, ids from 0): github.com/DaDaCheng/WalkPooling data/splitted/*.mat; citeseer "
        "and pubmed (HeaRT's splits, Citeseer's hard negatives): github.com/selinceydeli/LPFormer "
        "dataset/; cora: github.com/kimiyoung/planetoid data/ind.cora.graph",
        "SEAL, planetoid and HeaRT: MIT; WalkPooling and the LPFormer copy state no licence",
    ),
}
