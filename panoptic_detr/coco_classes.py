"""The classes that published COCO checkpoints mean: 80 things, and 53 kinds of stuff of the panoptic task.

Published checkpoints carry no class names; their label index is the COCO category id.
"""

from functools import cache

from panoptic_detr.categories import Category, CategoryTable
from panoptic_detr.errors import InputError

DETECTION_LABELS, PANOPTIC_LABELS = 91, 250


@cache
def coco_categories(num_labels: int = PANOPTIC_LABELS) -> CategoryTable:
    """The class table of a published checkpoint with so many label slots.

    Args:
        num_labels: 250 for panoptic models, 91 for detection (things only).

    Raises:
        InputError: no published COCO model has so many label slots.
    """
    if num_labels not in (DETECTION_LABELS, PANOPTIC_LABELS):
        raise InputError(f"published COCO models have {DETECTION_LABELS} or {PANOPTIC_LABELS} label slots, not {num_labels}")
    rows = (line.split(" ", 3) for line in _CLASSES.strip().splitlines())
    every = [Category(int(id), name, thing == "1", _rgb(color)) for id, thing, color, name in rows]
    chosen = tuple(category for category in every if category.isthing or num_labels == PANOPTIC_LABELS)
    return CategoryTable(chosen, num_labels, "id")


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color)
    return red, green, blue


# Category id, thing or stuff (1 or 0), colour, name: COCO's panoptic category list.
_CLASSES = """
1 1 dc143c person
2 1 770b20 bicycle
3 1 00008e car
4 1 0000e6 motorcycle
5 1 6a00e4 airplane
6 1 003c64 bus
7 1 005064 train
8 1 000046 truck
9 1 0000c0 boat
10 1 faaa1e traffic light
11 1 64aa1e fire hydrant
13 1 dcdc00 stop sign
14 1 af74af parking meter
15 1 fa001e bench
16 1 a52a2a bird
17 1 ff4dff cat
18 1 00e2fc dog
19 1 b6b6ff horse
20 1 005200 sheep
21 1 78a69d cow
22 1 6e4c00 elephant
23 1 ae39ff bear
24 1 c76400 zebra
25 1 480076 giraffe
27 1 ffb3f0 backpack
28 1 007d5c umbrella
31 1 d10097 handbag
32 1 bcd0b6 tie
33 1 00dcb0 suitcase
34 1 ff63a4 frisbee
35 1 5c0049 skis
36 1 8581ff snowboard
37 1 4eb4ff sports ball
38 1 00e400 kite
39 1 aefff3 baseball bat
40 1 2d59ff baseball glove
41 1 868667 skateboard
42 1 9194ae surfboard
43 1 ffd0ba tennis racket
44 1 c5e2ff bottle
46 1 ab8601 wine glass
47 1 6d3f36 cup
48 1 cf8aff fork
49 1 97005f knife
50 1 09503d spoon
51 1 546933 bowl
52 1 4a4169 banana
53 1 a6c466 apple
54 1 d0c3d2 sandwich
55 1 ff6d41 orange
56 1 008f95 broccoli
57 1 b300c2 carrot
58 1 d1636a hot dog
59 1 057900 pizza
60 1 e3ffcd donut
61 1 93bad0 cake
62 1 994501 chair
63 1 035fa1 couch
64 1 a3ff00 potted plant
65 1 7700aa bed
67 1 00b6c7 dining table
70 1 00a578 toilet
72 1 b78258 tv
73 1 5f2000 laptop
74 1 827287 mouse
75 1 6e8185 remote
76 1 a64a76 keyboard
77 1 db8eb9 cell phone
78 1 4fd272 microwave
79 1 b25a3e oven
80 1 41460f toaster
81 1 7fa773 sink
82 1 3b696a refrigerator
84 1 8e6c2d book
85 1 c4ac00 clock
86 1 5f3650 vase
87 1 804cff scissors
88 1 c93901 teddy bear
89 1 f6007a hair drier
90 1 bfa2d0 toothbrush
92 0 ffff80 banner
93 0 93d3cb blanket
95 0 966464 bridge
100 0 a8abac cardboard
107 0 9270c6 counter
109 0 d2aa64 curtain
112 0 5c8859 door-stuff
118 0 da58b8 floor-wood
119 0 f18100 flower
122 0 d911ff fruit
125 0 7c4ab5 gravel
128 0 464646 house
130 0 ffe4ff light
133 0 9ad000 mirror-stuff
138 0 c1005c net
141 0 4c5b71 pillow
144 0 ffb4c3 platform
145 0 6a9ab0 playingfield
147 0 e6968c railroad
148 0 3c8fff river
149 0 804080 road
151 0 5c5237 roof
154 0 fed47c sand
155 0 494dae sea
156 0 ffa062 shelf
159 0 ffffff snow
161 0 68546d stairs
166 0 a9a483 tent
168 0 e1c7ff towel
171 0 89364a wall-brick
175 0 879edf wall-stone
176 0 07f6e7 wall-tile
177 0 6bffc8 wall-wood
178 0 3a2995 water-other
180 0 b7798e window-blind
181 0 ff4961 window-other
184 0 6b8e23 tree-merged
185 0 be9999 fence-merged
186 0 928b8d ceiling-merged
187 0 4682b4 sky-other-merged
188 0 86c79c cabinet-merged
189 0 d1e28c table-merged
190 0 60246c floor-other-merged
191 0 606060 pavement-merged
192 0 40aa40 mountain-merged
193 0 98fb98 grass-merged
194 0 d0e5e4 dirt-merged
195 0 cebaab paper-merged
196 0 98a140 food-other-merged
197 0 747000 building-other-merged
198 0 00728f rock-merged
199 0 66669c wall-other-merged
200 0 fa8dff rug-merged
"""
