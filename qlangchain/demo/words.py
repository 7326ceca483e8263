"""Word lists and invented words from which the exercises of the demo model are built.

Every list is cut in two: the model trains on the first four fifths, and the measurements use the last
fifth, so that a right answer there was copied and not remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "test"]

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ines Jack Karen Leo Maria Noah Olga Peter Rosa Samuel Tina
Victor Wendy Xavier Yusuf Zoe Alice Bob Carlos Diana Erik Fatima George Hannah Ivan Julia Kevin Laura Marco Nina
Oscar Paula Quentin Rachel Simon Tariq Ursula Valentina Walter Yara Amir Bianca Chen Dmitri Elena Franz Greta Hugo
Aisha Bruno Celine Dario Erick Freya Gustav Helga Igor Jasmin Kofi Linnea"""
CITIES = """Paris;London;Berlin;Rome;Madrid;Tokyo;Beijing;Lisbon;Vienna;Prague;Dublin;Oslo;Cairo;Lagos;Nairobi;Lima;
Bogota;Havana;Toronto;Chicago;Boston;Seattle;New York;Los Angeles;San Diego, CA;Austin, TX;Portland, OR;Denver, CO;
Mumbai;Delhi;Karachi;Hanoi;Bangkok;Manila;Jakarta;Sydney;Perth;Auckland;Athens;Warsaw;Budapest;Helsinki;Zurich;
Geneva;Milan;Munich;Hamburg;Lyon;Porto;Seville;Glasgow;Leeds;Boulder, CO;Miami, FL;Hong Kong;Cape Town;Buenos Aires;
San Francisco, CA;Stockholm;Copenhagen;Istanbul;Kyoto;Santiago;Reykjavik;Tallinn;Montreal;Dallas, TX;Nice"""
ZH_CITIES = (
    "北京 上海 广州 深圳 杭州 南京 武汉 成都 重庆 西安 天津 苏州 长沙 青岛 大连 厦门 昆明 哈尔滨 福州 济南"
)
ZH_NAMES = (
    "张伟 王芳 李娜 刘洋 陈静 杨帆 赵磊 黄敏 周杰 吴昊 徐丽 孙悦 马超 朱琳 胡军 郭涛 何晓 林峰 罗丹 梁宇"
)
TOPICS = """weather;population;price;timezone;status;schedule;address;owner;rating;capital;temperature;forecast;balance;
menu;salary;score;deadline;phone number;stock price;exchange rate;opening hours;humidity;length;height;weight;color;
author;version;license;distance;traffic;calories;inventory;altitude;currency;language;birthday;email;password hint;
delivery date;battery level;room number;flight status;train times;release date;pollen count;water level;tax rate;
wind speed;air quality;ticket price;sunset time;area code;parking fee;postal code;bus line"""
SUBJECTS = """city location name country product person order_id user title place item company query symbol model key
employee team book project station device customer_id region account vehicle package recipe sensor dish"""
VERBS = """start stop open close move copy delete create update rename check reset sort merge print save load lock test
measure paint clean build pack ship track archive publish review approve cancel"""
OBJECTS = """file report order printer door engine window table invoice backup robot camera garden ticket folder
server parcel lamp playlist contract pump shelf kettle drone valve ladder tractor freezer poster antenna"""
PARAMETERS = """input x value level count size amount speed mode label note target code tag limit width depth height
number index text word message reason group page year day hour offset weight source color priority ratio port
delay channel slot grade token origin marker radius format"""
ENUMS = [["celsius", "fahrenheit"], ["low", "medium", "high"], ["red", "green", "blue"], ["north", "south"],
         ["asc", "desc"], ["small", "large"], ["fast", "slow"], ["metric", "imperial"], ["daily", "weekly", "monthly"],
         ["json", "csv", "xml"], ["left", "right"], ["public", "private"], ["draft", "final"], ["dark", "light"]]  # fmt: skip
PHRASES = """good morning;buy milk;meeting at noon;call the doctor;hello world;the red door;three blue birds;see you soon;
water the plants;happy birthday;fix the old bike;send the report;lunch with Emma;a quiet place;read chapter two;
check the oven;new ideas for spring;train to Rome;the last page;winter is coming;pay the rent;open source models;
cats and dogs;where is the key;nothing to add;a long walk;pick up the parcel;learn to swim;paint the fence"""
MATERIALS = """wood steel glass paper cotton stone copper rubber leather silver clay plastic wool bamboo marble
granite velvet bronze cork linen"""

_WORDS = {"name": NAMES, "zh_city": ZH_CITIES, "zh_name": ZH_NAMES, "subject": SUBJECTS, "verb": VERBS, "object": OBJECTS,
          "parameter": PARAMETERS, "material": MATERIALS}  # fmt: skip
_ROWS = {"city": CITIES, "topic": TOPICS, "phrase": PHRASES}


def _rows(text: str) -> list[str]:
    return [row.strip() for row in text.replace("\n", " ").split(";") if row.strip()]


_LISTS = {kind: text.split() for kind, text in _WORDS.items()} | {
    kind: _rows(text) for kind, text in _ROWS.items()
}


def invented(rng: Random) -> str:
    """Return a word of random letters, mostly pronounceable, so that it can only be copied."""
    kind = rng.random()
    if kind < 0.7:
        word = "".join(
            rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))
        )
        word += rng.choice(["", "", "n", "x", "rk", "lt", "s", "m", "th"])
    elif kind < 0.9:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    else:
        letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
        return f"{letters}{rng.choice(['-', '', '_'])}{rng.randint(1, 9999)}"
    return word.capitalize() if rng.random() < 0.5 else word


@dataclass(frozen=True)
class Bank:
    """A source of words: a seeded random generator and the part of the lists it may use."""

    rng: Random
    split: Split = "train"

    def list(self, kind: str) -> list[str]:
        """Return the words of a kind that belong to this split."""
        words, cut = _LISTS[kind], len(_LISTS[kind]) * 4 // 5
        return words[:cut] if self.split == "train" else words[cut:]

    def pick(self, kind: str) -> str:
        """Return one listed word of a kind."""
        return self.rng.choice(self.list(kind))

    def entity(self) -> str:
        """Return a person's name, a city or an invented word."""
        kind = self.rng.random()
        if kind < 0.5:
            return invented(self.rng)
        if kind < 0.75:
            return self.pick("name")
        return self.pick("city")

    def integer(self) -> int:
        """Return an integer of one to six digits, sometimes negative."""
        value = self.rng.randint(0, 10 ** self.rng.randint(1, 6))
        return -value if self.rng.random() < 0.06 else value

    def number(self) -> float:
        """Return a decimal number with one or two places that prints the way it is read."""
        return round(self.rng.uniform(0, 10 ** self.rng.randint(1, 3)), self.rng.randint(1, 2))
