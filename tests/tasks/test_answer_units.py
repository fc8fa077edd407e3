"""Units and currencies in final answers: names of one unit are the same, and nothing is converted."""

import pytest

from allo.tasks.answers import verify_final_answer

Cases = list[tuple[str, str, bool]]
"""`(what follows "The answer is", the right answer, whether it is right)`."""

UNITS: dict[str, Cases] = {
    "currencies": [
        ("Rs. 500", "500", True), ("Rs 500", "500 rupees", True), ("₹500", "Rs. 500", True), ("₹500", "$500", False),
        ("500 INR", "500 rupees", True), ("18 USD", "$18", True), ("USD 18", "$18", True),
        ("US$18", "18 dollars", True), ("18 EUR", "18 euros", True), ("€18", "18 EUR", True), ("€18", "$18", False),
        ("18 EUR", "18 dollars", False), ("£5", "5 pounds", True), ("£5", "5 lbs", False),
        ("5 lb", "5 pounds", True), ("5 GBP", "£5", True), ("18 bucks", "$18", True),
        ("18 cents", "18 dollars", False), ("18¢", "18 cents", True), ("18 CAD", "18 USD", False),
        ("¥500", "500 yen", True), ("18 $", "18", True), ("$18 dollars", "18", True),
    ],
    "units": [
        ("5 cm", "5 centimeters", True), ("5 cm", "5 centimetres", True), ("5 cm", "5 m", False),
        ("5 cm", "5 millimeters", False), ("5 kg", "5 kilograms", True), ("5 kg", "5 g", False),
        ("5 kilos", "5 kilometers", False), ("1 inch", "1 inches", True), ("5 in", "5 inches", True),
        ("5 in.", "5 inches", True), ("6 ft", "6 feet", True), ("1 foot", "1 feet", True),
        ("6 ft", "6 inches", False), ("6 yd", "6 yards", True), ("3 hrs", "3 hours", True), ("3 h", "3 hours", True),
        ("3 h", "3 minutes", False), ("60 minutes", "1 hour", False), ("5 min", "5 minutes", True),
        ("5 s", "5 seconds", True), ("5 mL", "5 milliliters", True), ("5 ml", "5 mL", True),
        ("5 l", "5 liters", True), ("5 litres", "5 L", True), ("5 lbs", "5 pounds", True),
        ("5 oz", "5 ounces", True), ("5 mph", "5 miles per hour", True), ("5 mi/h", "5 mph", True),
        ("60 km/h", "60 kilometers per hour", True), ("60 kph", "60 km/h", True),
        ("60 km per hour", "60 km/h", True), ("60 km/h", "60 m/s", False), ("60 km", "60 km/h", False),
        ("60 km/h", "60", True), ("60 mph", "60 km/h", False), ("9.8 m/s^2", "9.8 meters per second squared", True),
        ("9.8 m/s²", "9.8 m/s", False), ("25 m²", "25 m^2", True), ("25 m2", "25 square meters", True),
        ("25 sq m", "25 m²", True), ("25 sq. ft.", "25 square feet", True), ("25 m²", "25 m", False),
        ("25 m²", "25 m³", False), ("25 m²", "25 cm²", False), ("25 cubic cm", "25 cm³", True),
        ("25 cc", "25 cm^3", True), ("25 square meters", "25", True), ("25 meters squared", "25 m^2", True),
        ("5 mW", "5 MW", False), ("5 mW", "5 milliwatts", True), ("5 MW", "5 megawatts", True),
        ("5 kWh", "5 kilowatt-hours", True), ("5 kWh", "5 kW", False), ("5 °C", "5 degrees Celsius", True),
        ("5°C", "5 degrees", True), ("5 °C", "5 °F", False), ("5 °C", "5 K", False), ("5 GB", "5 MB", False),
        ("5 Hz", "5 hertz", True), ("5 people", "5 persons", True), ("5 boxes", "5 box", True),
        ("1 child", "1 children", True), ("5 apples", "5 oranges", False), ("5cm", "5 cm", True), ("5x", "5", False),
        ("5 x", "5", False), ("5m", "5", True), ("5m", "5 cm", False), ("5m", "5 m", True),
        ("5 degrees", "5°", True), ("$18 per day", "18 dollars a day", True), ("18 dollars/day", "$18 a day", True),
        ("18 dollars", "$18 a day", True), ("5 Ω", "5 ohms", True), ("5 A", "5 amps", True), ("5 K", "5 kelvin", True),
        ("5 ha", "5 hectares", True), ("5 atm", "5 atmospheres", True), ("5 rad", "5 radians", True),
        ("5 fl oz", "5 fluid ounces", True), ("5 mcg", "5 µg", True), ("5 ha", "5 acres", False),
        ("5 ft 6 in", "5 feet 6 inches", True), ("5 feet and 6 inches", "5 ft 6 in", True),
        ("5 ft 7 in", "5 feet 6 inches", False), ("6 ft 5 in", "5 feet 6 inches", False),
        ("2 hours 30 minutes", "2 h 30 min", True), ("2 h 30 s", "2 h 30 min", False),
    ],
    "percent, hedges and bounds": [
        ("5 pct", "5%", True), ("5 per cent", "5%", True), ("5％", "5%", True), ("50%", "0.5", True),
        ("5%", "$5", False), ("about 5%", "5%", True), ("about 5", "5", True), ("~5", "5", True), ("≈ 5", "5", True),
        ("approximately 5 cm", "5 cm", True), ("approx. 5", "5", True), ("at least 5", "5", False),
        ("less than 5", "5", False), ("more than 5", "5", False), ("almost 5", "5", False), ("up to 5", "5", False),
        ("over 5", "5", False), ("5 or 6", "5", False), ("5 or more", "5", False), ("5-6", "5", False),
        ("5 to 6", "5", False), ("±5", "5", False), ("> 5", "5", False), ("≥5", "5", False), ("No. 5", "5", True),
        ("No. 5", "6", False), ("No.5", "5", True), ("no. 5", "5", True), ("number 5", "5", True), ("#5", "5", True),
        ("№ 5", "5", True), ("№5", "5", True), ("no 5", "5", False), ("not 5", "5", False),
        ("not 5 but 6", "6", True), ("not 5 but 6", "5", False), ("6, not 5", "6", True),
        ("6 rather than 5", "6", True), ("6 instead of 5", "5", False), ("I don't think it's 5", "5", False),
        ("it isn't 5", "5", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cases", UNITS.values(), ids=UNITS)
def test_names_of_one_unit_agree_and_other_units_do_not(cases: Cases) -> None:
    def is_correct(said: str, answer: str) -> bool:
        space = "" if said[0] in ":：\n" else " "
        return verify_final_answer(f"Let us see. The answer is{space}{said}", answer).correct

    assert [case for case in cases if is_correct(*case[:2]) != case[2]] == []
