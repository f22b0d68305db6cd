"""Words that are one token in most vocabularies when a space goes before them."""

OPENING = "The"

_TEXT = """
about above across action after again against age air all along also always among and animal
another answer any area arm army around art ask baby back bad ball bank base bear beat bed before
began behind best better between big bird black blood blue board boat body book born both bottom
box boy bring brother brown build business buy call came can car care carry case cat catch cause
cell center change child church circle city class clean clear close cloth cold color come common
company cook cool corner cost could country course cover cross cry cut dark day dead deal death
deep did die direct dog door double down draw dream dress drink drive dry early earth east easy
eat edge effect egg end energy engine enough enter even evening event ever every eye face fact
fall family far farm fast father fear feel feet few field fight figure fill final find fine finger
finish fire first fish floor fly follow food foot force form forward four free fresh friend from
front fruit full game garden gave get girl give glass go gold good grass great green ground group
grow had half hand happy hard hat have head hear heart heat heavy help here high hill history
hold home hope horse hot hour house how human idea inside iron island job join jump keep key kind
king knew land language large last late laugh law lay lead learn leave left leg less letter level
lie life light like line list listen little live long look lost lot love low machine made main
make man many map mark market matter mean measure meat meet men metal might mile milk mind minute
money month moon more morning most mother mountain mouth move much music name nation nature near
"""

WORDS = tuple(_TEXT.split())
