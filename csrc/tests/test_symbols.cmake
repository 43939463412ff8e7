# Fails if an object file defines a function or an object that the linker may merge with another
# file's. Such a symbol comes from a template or an inline function that is not in an unnamed
# namespace. The file is compiled for one instruction set; were its version the one that is kept,
# machines without that instruction set would run it too, wherever it is called from.
#
# cmake -DNM=nm -DOBJECT=file.o -P test_symbols.cmake
execute_process(COMMAND ${NM} --defined-only -C ${OBJECT} OUTPUT_VARIABLE symbols
                RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${NM} ${OBJECT}: ${status}")
endif()
# Weak functions and objects, and unique objects.
string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]*" shared "${symbols}")
# The compiler's own pointer to the personality routine: data, and the same in every file.
list(FILTER shared EXCLUDE REGEX " DW\\.ref\\.")
if(NOT symbols MATCHES " [TtRrDd] ")
  message(FATAL_ERROR "${OBJECT} defines nothing that ${NM} shows; is it an object file?")
endif()
if(shared)
  string(REPLACE ";" "\n" shared "${shared}")
  message(FATAL_ERROR "The linker may give these, compiled for one instruction set, to all others; "
                      "put what they come from into an unnamed namespace or have it inlined:\n"
                      "${shared}")
endif()
