// no includes
