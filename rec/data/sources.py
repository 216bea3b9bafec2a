# SPDX-License-Identifier: Apache-2.0
"""Where the raw files of the recommenders come from, and what they must contain."""

_GITHUB = "https://raw.githubusercontent.com"
_GRAM = f"{_GITHUB}/skleee/GRAM/HEAD/rec_datasets"
_IDGENREC = f"{_GITHUB}/agiresearch/IDGenRec/HEAD/rec_datasets"
_S3REC = f"{_GITHUB}/RUCAIBox/CIKM2020-S3Rec/HEAD/data"
_LETTER = f"{_GITHUB}/HonghuiBao2000/LETTER/HEAD/data"
_MINIONEREC = f"{_GITHUB}/AkaliKong/MiniOneRec/HEAD/data/Amazon/index"
_RECBOLE = f"{_GITHUB}/RUCAIBox/RecBole/HEAD/dataset/ml-100k"

# Path under the data root -> (sha256 of the unzipped content, public source).
FILES = {
    "amazon2014/beauty/user_sequence.txt.gz": (
        "47197cbee7bdc1896926e10d96b807dce0aecb9a1f0c2ccc887c21090237c9b7",
        f"{_GRAM}/Beauty/user_sequence.txt",
    ),
    "amazon2014/beauty/item_keyword_path.txt.gz": (
        "2bfa6792146c27884f27ae7ffab223eb93b5151f8bfcce2939f93b87be7add5b",
        f"{_GRAM}/Beauty/item_generative_indexing_hierarchy_v1_c128_l7_len32768_split.txt",
    ),
    "amazon2014/beauty/item_text_tag.txt.gz": (
        "1a90f934fe506747f094b181f791ece593e2f86bb15e5420d910e6de4882b456",
        f"{_IDGENREC}/Beauty/item_generative_indexing_phase_0.txt",
    ),
    "amazon2014/beauty/sequences_int.txt.gz": (
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        f"{_S3REC}/Beauty.txt",
    ),
    "amazon2014/beauty/item_attributes.json.gz": (
        "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
        f"{_S3REC}/Beauty_item2attributes.json",
    ),
    "amazon2014/sports/user_sequence.txt.gz": (
        "240fd0484501ca53769c016cb1bc674ac7e420aef562b88cea1439b94a3ba044",
        f"{_GRAM}/Sports/user_sequence.txt",
    ),
    "amazon2014/sports/item_keyword_path.txt.gz": (
        "fc5a8e6787df5bf679a299315633d90a82fe6b334bdc8fc02728f54f1284ce87",
        f"{_GRAM}/Sports/item_generative_indexing_hierarchy_v1_c32_l7_len32768_split.txt",
    ),
    "amazon2014/sports/item_text_tag.txt.gz": (
        "710b6d9b661aebcd065b861e4076f5e3cc66bdd9735e462ca2db90d5cc951593",
        f"{_IDGENREC}/Sports/item_generative_indexing_phase_0.txt",
    ),
    "amazon2014/sports/sequences_int.txt.gz": (
        "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
        f"{_S3REC}/Sports_and_Outdoors.txt",
    ),
    "amazon2014/sports/item_attributes.json.gz": (
        "7fb10733ac4f1811384a52144cdefa7fcc7536fa80a7232c5da9bd789155c34b",
        f"{_S3REC}/Sports_and_Outdoors_item2attributes.json",
    ),
    "amazon2018_text/Industrial_and_Scientific.item.json.gz": (
        "937600c7a03652f55864a1d12d6e9fe8ca3e24ecc4e255a88216b25c5f949496",
        f"{_MINIONEREC}/Industrial_and_Scientific.item.json",
    ),
    "amazon2018_text/Industrial_and_Scientific.index.json.gz": (
        "53f1aefbe8b8aa774326c122606c6525300c5a325e7b78817739d465aeb335f8",
        f"{_MINIONEREC}/Industrial_and_Scientific.index.json",
    ),
    "letter/Beauty.inter.json.gz": (
        "8809584b8b78fa6561771c88911ed65bd716fc9926fca1e581e6a1ab578ccfd5",
        f"{_LETTER}/Beauty/Beauty.inter.json",
    ),
    "letter/Beauty.index.json.gz": (
        "be3fb890e59b5443824cdebc560ef349191b97f20d3aecad4727de2d6b212c82",
        f"{_LETTER}/Beauty/Beauty.index.json",
    ),
    "letter/Instruments.inter.json.gz": (
        "0a11d47791d90483005da93c36d826679e20e4592d1d2b86518d5f56f218e743",
        f"{_LETTER}/Instruments/Instruments.inter.json",
    ),
    "letter/Instruments.index.json.gz": (
        "33c87e28c52ae367985bdf494cb49d676d181e13a39497b4ad035f46111546dd",
        f"{_LETTER}/Instruments/Instruments.index.json",
    ),
    "ml-100k/ml-100k.inter.gz": (
        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        f"{_RECBOLE}/ml-100k.inter",
    ),
    "ml-100k/ml-100k.item.gz": (
        "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        f"{_RECBOLE}/ml-100k.item",
    ),
    "ml-100k/ml-100k.user.gz": (
        "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        f"{_RECBOLE}/ml-100k.user",
    ),
}
_AMAZON = "research use; cite McAuley et al. (Amazon reviews); the repositories state no licence"
ABOUT = {
    "amazon2014/beauty": (
        "Amazon 2014 Beauty, 5-core: 22,363 users in time order, 12,101 items with tags, keywords "
        "and attributes",
        _AMAZON,
    ),
    "amazon2014/sports": (
        "Amazon 2014 Sports and Outdoors, 5-core: 35,598 users in time order, 18,357 items with "
        "tags, keywords and attributes",
        _AMAZON,
    ),
    "amazon2018_text": (
        "Titles, descriptions, brands and 3x256 semantic IDs of 3,686 Amazon 2018 Industrial items",
        "MiniOneRec, Apache License 2.0; Amazon reviews, research use",
    ),
    "letter": (
        "Sequences and 4x256 semantic IDs of Amazon Beauty and Instruments, as LETTER uses them",
        _AMAZON,
    ),
    "ml-100k": (
        "MovieLens 100K: 100,000 ratings with seconds, 943 users, titles and genres of 1,682 films",
        "GroupLens terms: no redistribution without permission",
    ),
}
